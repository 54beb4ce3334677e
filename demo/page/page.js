// The page: what is asked for stands in the address, so that it can be shared and gone back to.

import * as draw from './draw.js';
import * as filters from './filters.js';
import { base64, fitted, ofProduct, receive } from './photo.js';
import { DEPTH, ask, search } from './service.js';
import { stop, walkable } from './walk.js';

const STEP = 24;  // products that are shown at once
const $ = (id) => document.getElementById(id);
let catalogue = { products: 0, model: '', types: [], fields: [], numbers: {}, examples: [] };
let hue = {};  // colour of each entity type
let state = read();
let photo = null;  // of a file, as Blob: it cannot stand in the address
let answers = null;
let shown = STEP;
let panelled = null;  // the filters that the panel was drawn with
let running = new AbortController();

function read() {
  const asked = new URLSearchParams(location.search);
  return {
    query: asked.get('q') ?? '',
    like: asked.get('like'),  // id of the product whose photo is searched with
    side: asked.get('side') === 'product' ? 'product' : 'image',
    entities: asked.get('entities') !== '0',
    filters: filters.parsed(asked.getAll('filter')),
  };
}

function address() {
  const asked = new URLSearchParams();
  if (state.query) asked.set('q', state.query);
  if (state.like) asked.set('like', state.like);
  if (state.side !== 'image') asked.set('side', state.side);
  if (!state.entities) asked.set('entities', '0');
  for (const text of filters.written(state.filters)) asked.append('filter', text);
  return asked.size ? `?${asked}` : '';
}

/** Change what is asked for, and ask. */
function go(changes) {
  state = { ...state, ...changes };
  if ('query' in changes) $('query').value = state.query;
  if (address() !== location.search) history.pushState(null, '', address() || location.pathname);
  return run();
}

const asks = () => Boolean(state.query || state.like || photo);

async function run() {
  running.abort();
  const { signal } = running = new AbortController();
  shown = STEP;
  form();
  say('');
  $('status').textContent = asks() ? 'Searching…' : '';
  $('results').ariaBusy = 'true';
  let asked = null;
  try {
    asked = state.like ? await ofProduct(state.like, signal) : photo;
    show(asked);
    const found = asks() ? search(state, asked && await base64(asked), signal) : null;
    [answers] = await Promise.all([found, filter(signal)]);
    results();
  } catch (error) {
    if (error.name === 'AbortError') return;  // a newer search runs
    answers = null;
    if (!asked) show(null);
    results();
    say(error.message);
  }
  $('results').ariaBusy = 'false';
}

/** The form as the state says. */
function form() {
  $('entities').checked = state.entities;
  $('entities').disabled = Boolean(state.like || photo);
  $('search').elements.side.value = state.side;
  $('filter-count').textContent = state.filters.length ? ` (${state.filters.length})` : '';
  document.title = state.query ? `${state.query} – Find products` : 'Find products';
}

/** The filters that hold, and the panel of those there are. */
async function filter(signal) {
  const key = filters.written(state.filters).join('\n');
  const change = (changed) => go({ filters: changed });
  $('active').replaceChildren(...filters.active(state.filters, hue, change));
  if (key === panelled) return;
  renew($('fields'), await filters.panel(catalogue, state.filters, hue, change, signal));
  panelled = key;
}

/** The photo that is searched with. */
function show(asked) {
  URL.revokeObjectURL($('asked-photo').src);
  $('asked').hidden = !asked;
  if (!asked) return;
  $('asked-photo').src = URL.createObjectURL(asked);
  $('asked-note').textContent = state.like
    ? `It is that of product ${state.like}, which is left out.`
    : 'A link to this page cannot carry it.';
}

function say(sentence) {
  $('error').textContent = sentence;
  if (sentence) $('status').textContent = '';
}

/** New children; the one that had the keyboard keeps it. */
function renew(parent, children) {
  const key = parent.contains(document.activeElement) && document.activeElement.dataset.key;
  parent.replaceChildren(...children);
  if (key) parent.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus();
}

/** The results as answers and switch say; asks nothing anew. */
function results() {
  const on = state.entities || !answers?.off;
  const here = (on ? answers?.on : answers?.off)?.hits ?? [];
  const there = (on ? answers?.off : answers?.on)?.hits;
  const other = there && new Map(there.map((hit, i) => [hit.id, i + 1]));
  const reading = answers?.off && answers.on.reading;
  const cards = here.slice(0, shown).map((hit, i) =>
    draw.card(hit, i + 1, other && (other.get(hit.id) ?? null), hue, like));
  $('reading').hidden = !reading;
  $('reading').replaceChildren(...(reading ? draw.reading(reading, on, hue) : []));
  $('examples').hidden = asks() || !catalogue.examples.length;
  $('results').className = state.side === 'product' ? 'texts' : '';
  $('results').replaceChildren(...cards);
  stop($('results'));
  $('more').hidden = here.length <= shown;
  if (answers) $('status').textContent = summary(here.slice(0, shown), other);
  else if (!asks()) $('status').textContent = 'Write what you look for, or choose, drop or paste a photo.';
}

function summary(here, other) {
  if (!here.length) {
    return state.filters.length
      ? 'No product passes these filters. Remove one to see more.'
      : 'Nothing in the catalogue can be compared with this.';
  }
  const count = here.length === 1 ? 'One product found.' : `The ${here.length} products that fit best.`;
  if (!other) return count;
  const moved = here.filter((hit, i) => other.get(hit.id) !== i + 1);
  const fresh = moved.filter((hit) => !other.has(hit.id)).length;
  if (!moved.length) return `${count} The switch moves none of them.`;
  const said = `${count} The switch moves ${moved.length} of them`;
  return fresh ? `${said}; ${fresh} come from beyond place ${DEPTH}.` : `${said}.`;
}

function like({ id, payload }) {
  photo = null;
  $('query').focus();
  scrollTo({ top: 0 });
  go(payload.photo ? { like: id, query: '' } : { like: null, query: draw.text(payload) });
}

async function take(file) {
  try {
    photo = await fitted(file);
  } catch (error) {
    say(error.message);
    return;
  }
  go({ query: '', like: null });
}

function clear() {
  photo = null;
  go({ query: '', like: null });
}

function listen() {
  const on = (id, name, act) => $(id).addEventListener(name, act);
  on('search', 'submit', (event) => {
    event.preventDefault();
    const query = $('query').value.trim();
    if (query) photo = null;
    go({ query, like: query ? null : state.like });
  });
  on('side', 'change', (event) => go({ side: event.target.value }));
  on('entities', 'change', (event) => {
    state.entities = event.target.checked;
    history.pushState(null, '', address() || location.pathname);
    if (matchMedia('(prefers-reduced-motion: reduce)').matches) results();
    else document.startViewTransition?.(results) ?? results();
  });
  on('file', 'change', ({ target }) => {
    const [file] = target.files;
    if (file) take(file);
    target.value = '';  // the same file may be chosen again
  });
  on('drop-photo', 'click', () => {
    clear();
    $('query').focus();
  });
  on('more', 'click', () => {
    const first = shown;
    shown += STEP;
    results();
    $('results').querySelectorAll('button')[first]?.focus();
  });
  addEventListener('keydown', (event) => {
    if (event.key !== 'Escape') return;
    if (document.activeElement === $('query') && (asks() || $('query').value)) clear();
    $('query').focus();
  });
  addEventListener('popstate', () => {
    state = read();
    photo = null;
    $('query').value = state.query;
    run();
  });
  walkable($('results'));
  receive(take);
}

async function start() {
  listen();
  $('query').value = state.query;
  $('filters').open = matchMedia('(min-width: 761px)').matches;
  try {
    catalogue = await ask('/catalogue');
  } catch (error) {
    say(error.message);
    return;
  }
  hue = draw.hues(catalogue.types);
  $('about').textContent = `${catalogue.products.toLocaleString('en')} products, searched with ${catalogue.model}`;
  $('examples').lastElementChild.replaceChildren(...catalogue.examples.map((query) =>
    draw.element('li', {}, draw.element('button', { type: 'button', onclick: () => go({ query }) }, query))));
  await run();
}

start();
