// Elements of the page. Texts come from shops: they enter as text, never as HTML.

export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === 'hue' || name === 'part') made.style.setProperty(`--${name}`, value);
    else if (name === 'moves') made.style.viewTransitionName = value;
    else if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== ''));
  return made;
}

/** A colour for each type, as far from the others' as it gets; those of a search with all types. */
export function hues(types) {
  return Object.fromEntries([...types].sort().map((type, i) => [type, Math.round(i * 137.5) % 360]));
}

export const words = (name) => name.replaceAll('_', ' ');
export const number = (n) => n.toLocaleString('en');
export const text = (payload) => Object.values(payload.text_fields ?? {}).filter(Boolean).join(' · ');

/** A query with its entities marked, and CE-Selector's weight of each. */
export function reading({ text, entities: found }, on, hue) {
  const entities = [...found].sort((a, b) => a.start - b.start);
  const marked = element('p', { className: on ? '' : 'off' });
  const letters = Array.from(text);  // places count characters, not UTF-16 units
  let done = 0;
  const places = entities.filter((e) => e.start !== null);
  for (const entity of places.filter((e, i) => i === 0 || e.start !== places[i - 1].start)) {
    if (entity.start < done) continue;
    marked.append(letters.slice(done, entity.start).join(''));
    marked.append(element('mark', {
      hue: hue[entity.type] ?? 0, title: words(entity.type), className: entity.weight ? '' : 'out',
    }, letters.slice(entity.start, entity.end).join('')));
    done = entity.end;
  }
  marked.append(letters.slice(done).join(''));
  return [marked, entities.length
    ? element('ul', {}, ...entities.map((entity) => weight(entity, on, hue[entity.type] ?? 0)))
    : element('p', { className: 'soft' }, 'No entity of the catalogue is named in it.')];
}

function weight(entity, on, hue) {
  const said = !on ? 'switched off' : entity.weight ? `weight ${entity.weight.toFixed(2)}` : 'left out';
  return element('li', { title: `${number(entity.count)} products of the training data have it` },
    element('mark', { hue }, words(entity.type)),
    element('b', {}, entity.name),
    element('span', { className: 'bar', ariaHidden: 'true' },
      element('i', { hue, part: on ? entity.weight : 0 })),
    element('span', { className: 'soft' }, said));
}

/** A product among the results; `other` is its place with the switch the other way. */
export function card(hit, place, other, hue, act) {
  const { payload } = hit;
  const title = text(payload) || hit.id;
  const photo = payload.photo
    ? element('img', { src: `/photos/${encodeURIComponent(hit.id)}`, loading: 'lazy', alt: `photo of: ${title}` })
    : element('div', { className: 'none' }, 'no photo');
  const chips = Object.entries(payload.entities ?? {}).filter(([, names]) => names.length);
  return element('li', { className: 'card', 'data-id': hit.id, moves: `p-${CSS.escape(hit.id)}` },
    photo,
    element('p', { className: 'place' },
      element('b', {}, `${place}`), moved(place, other),
      element('span', { className: 'soft', title: 'score: how well it fits, 1 at best' },
        element('span', { className: 'unseen' }, 'score '), hit.score.toFixed(3))),
    element('p', { className: 'title', title }, title),
    element('ul', { className: 'chips', ariaLabel: 'entities' }, ...chips.map(([type, names]) =>
      element('li', { hue: hue[type] ?? 0, title: words(type) }, names.join(', ')))),
    ...Object.entries(payload.attributes ?? {}).slice(0, 3).map(([name, value]) =>
      element('p', { className: 'soft' }, `${words(name)}: ${value}`)),
    element('button', {
      type: 'button', tabIndex: -1, onclick: () => act(hit),
      ariaLabel: `More like this: ${title}`,
    }, 'More like this'));
}

/** What the switch did to a product: "3 → 1", or "new". */
function moved(place, other) {
  if (other === undefined || other === place) return null;
  if (other === null) {
    return element('span', { className: 'up', title: 'not among the first 100 with the switch the other way' }, 'new');
  }
  const title = `place ${other} with the switch the other way, ${place} as it stands`;
  return element('span', { className: other > place ? 'up' : 'down', title }, `${other} → ${place}`);
}
