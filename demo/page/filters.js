// Filters: `{field, op, value}`, one for each chip that is pressed and each end of a range.

import { element, words } from './draw.js';
import { ask } from './service.js';

const VALUES = 8;  // of a field that are offered, the most frequent

/** Filters as the service reads them; values of one field are alternatives. */
export function conditions(filters) {
  const equal = {};
  for (const { field, op, value } of filters) {
    if (op === '=') (equal[field] ??= []).push(`"${value.replaceAll('"', '""')}"`);
  }
  return [
    ...Object.entries(equal).map(([field, values]) => `${field}=${values.join(',')}`),
    ...filters.filter((f) => f.op !== '=').map(({ field, op, value }) => `${field}${op}${value}`),
  ];
}

/** Filters as they stand in the address. */
export const written = (filters) => filters.map(({ field, op, value }) => field + op + value);

export function parsed(texts) {
  return texts.map((text) => text.match(/^([^=<>!]+)(<=|>=|=)(.+)$/s)).filter(Boolean)
    .map(([, field, op, value]) => ({ field, op, value }));
}

/** Counts of a field's values, under the filters of all other fields. */
async function counts(field, filters, signal) {
  const asked = new URLSearchParams({ field, limit: VALUES });
  for (const filter of conditions(filters.filter((f) => f.field !== field))) {
    asked.append('filter', filter);
  }
  return (await ask(`/facets?${asked}`, null, signal))[field];
}

/** The panel of all fields; `change` is told the filters that a click leads to. */
export async function panel({ fields, numbers }, filters, hue, change, signal) {
  const found = await Promise.all(fields.map((field) => counts(field, filters, signal)));
  return [
    ...fields.map((field, i) => chips(field, found[i], filters, hue, change)),
    ...Object.entries(numbers).map(([field, edges]) => range(field, edges, filters, change)),
  ];
}

/** Values of a field with their counts, as buttons that are pressed where they filter. */
function chips(field, found, filters, hue, change) {
  const button = ([value, count]) => {
    const rest = filters.filter((f) => f.field !== field || f.op !== '=' || f.value !== value);
    const pressed = rest.length < filters.length;
    return element('li', {}, element('button', {
      type: 'button', hue: hue[field] ?? 220, ariaPressed: `${pressed}`, 'data-key': `${field}=${value}`,
      onclick: () => change(pressed ? rest : [...filters, { field, op: '=', value }]),
    }, value, ' ', element('span', { className: 'soft' }, count.toLocaleString('en'))));
  };
  return element('fieldset', { 'data-field': field },
    element('legend', {}, words(field)),
    element('ul', { className: 'chips' }, ...Object.entries(found).map(button)));
}

/** The two ends of a range of numbers. */
function range(field, [low, high], filters, change) {
  const end = (op, label, edge) => {
    const own = filters.find((f) => f.field === field && f.op === op);
    return element('input', {
      type: 'number', step: 'any', placeholder: edge, value: own?.value ?? '',
      ariaLabel: `${words(field)} ${label}`, 'data-key': field + op,
      onchange: ({ target: { value } }) => {
        const rest = filters.filter((f) => f !== own);
        change(value === '' ? rest : [...rest, { field, op, value }]);
      },
    });
  };
  return element('fieldset', { 'data-field': field },
    element('legend', {}, words(field)),
    element('div', { className: 'line' }, end('>=', 'from', low), '–', end('<=', 'to', high)));
}

/** The filters that hold, each a button that removes it. */
export function active(filters, hue, change) {
  return filters.map((filter) => {
    const sign = { '=': ':', '>=': ' from', '<=': ' to' }[filter.op];
    const said = `${words(filter.field)}${sign} ${filter.value}`;
    return element('li', {}, element('button', {
      type: 'button', hue: hue[filter.field] ?? 220, ariaLabel: `Remove filter ${said}`,
      onclick: () => change(filters.filter((f) => f !== filter)),
    }, `${said} ×`));
  });
}
