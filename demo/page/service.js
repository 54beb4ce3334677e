// What the page asks the service; an error becomes a sentence.

import { conditions } from './filters.js';

export const DEPTH = 100;  // places that are compared with and without entities

export async function ask(path, body, signal) {
  const options = { signal };
  if (body) {
    Object.assign(options, {
      method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body),
    });
  }
  let response, answer;
  try {
    response = await fetch(path, options);
    answer = await response.json();
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Error(response
      ? `The service answers ${response.status}, with nothing that can be read.`
      : 'The service does not answer. Is it still running?');
  }
  if (!response.ok) {
    throw new Error(answer.error?.message ?? `The service answers ${response.status}.`);
  }
  return answer;
}

/** Answers with the entities of the query and, where it has any, without: `{on, off}`. */
export async function search(state, photo, signal) {
  const body = { k: DEPTH, filters: conditions(state.filters), side: state.side };
  if (photo) {
    const found = await ask('/search', { ...body, k: DEPTH + 1, photo }, signal);
    const hits = found.hits.filter((hit) => hit.id !== state.like).slice(0, DEPTH);
    return { on: { ...found, hits } };
  }
  const [on, off] = await Promise.all([true, false].map((entities) =>
    ask('/search', { ...body, query: state.query, entities }, signal)));
  return { on, off };
}
