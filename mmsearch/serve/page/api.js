// Calls of the server. What goes wrong comes as a Problem (RFC 9457), or as Unreachable where nobody answers.

export class Problem extends Error {
  constructor(body, status) {
    super(body.detail ?? `HTTP ${status}`);
    this.status = status;
  }
}

export class Unreachable extends Error {}

async function call(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Unreachable(String(error));
  }
  if (!answer.ok) throw new Problem(await answer.json().catch(() => ({})), answer.status);
  return answer;
}

const asJson = (body) => ({ method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) });
const read = async (path, options) => (await call(path, options)).json();

export const status = () => read('/api/status');
export const isAlive = () => call('/healthz').then(() => true, () => false);
export const item = (id) => read(`/api/items/${encodeURIComponent(id)}`);
export const logIn = (token) => call('/api/session', asJson({ token }));
export const encodePicture = (blob) =>
  read('/api/encode', { method: 'POST', headers: { 'content-type': blob.type || 'application/octet-stream' }, body: blob });
export const keepFeedback = (query, like, unlike) => read('/api/feedback', asJson({ query, like, unlike }));
export const zip = async (ids) => (await call('/api/zip', asJson({ ids }))).blob();

export const items = (ids) => read('/api/items', asJson({ ids }));
export const findDuplicates = (threshold) => read('/api/duplicates', asJson({ threshold }));
export const duplicates = (k, cursor = null) =>
  read(`/api/duplicates?${new URLSearchParams({ k, ...(cursor && { cursor }) })}`);
export const map = () => read('/api/map');
export const makeMap = () => read('/api/map', { method: 'POST' });
export const mapPoints = () => call('/api/map/points');

export const indexState = () => read('/api/index');
export const startIndex = (folders) => read('/api/index', asJson({ folders }));
export const cancelIndex = () => read('/api/index', { method: 'DELETE' });
export const indexEvents = () => new EventSource('/api/index/events');

export const thumbnail = (id, size) => `/api/items/${encodeURIComponent(id)}/thumbnail?size=${size}`;
export const file = (id) => `/api/items/${encodeURIComponent(id)}/file`;

/**
 * A page of hits for a state of the page (see state.js): the first, or the one where the cursor goes on. The query goes
 * with the cursor, since the server forgets answers that nobody has read in for long, and then asks anew.
 */
export function search(state, k, signal, cursor = null) {
  const { q, like, unlike, kind, under, after, before, near, vectors } = state;
  if (vectors.length) {
    const body = { q, like, unlike, k, cursor, terms: vectors.map((vector) => ({ vector: unpacked(vector) })) };
    for (const [key, value] of Object.entries({ kind, after, before })) if (value) body[key] = value;
    if (under) body.under = [under];
    if (near) body.near = near.split(',').map(Number);
    return read('/api/search', { ...asJson(body), signal });
  }
  const params = new URLSearchParams({ q, k, ...(cursor && { cursor }) });
  for (const id of like) params.append('like', id);
  for (const id of unlike) params.append('unlike', id);
  for (const [key, value] of Object.entries({ kind, under, after, before, near })) if (value) params.set(key, value);
  return read(`/api/search?${params}`, { signal });
}

/** A vector as letters for an address: one signed byte for each number, so that a link to a picture search can be kept. */
export function packed(vector) {
  const most = Math.max(...vector.map(Math.abs)) || 1;
  const letters = vector.map((number) => String.fromCharCode((Math.round((number / most) * 127) + 256) % 256));
  return btoa(letters.join('')).replaceAll('+', '-').replaceAll('/', '_').replaceAll('=', '');
}

export function unpacked(letters) {
  const bytes = atob(letters.replaceAll('-', '+').replaceAll('_', '/'));
  return Array.from(bytes, (letter) => ((letter.charCodeAt(0) + 128) % 256 - 128) / 127);
}
