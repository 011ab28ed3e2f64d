// The page: what is typed, dropped and clicked becomes a state, the state an address, the address a search.

import * as api from './api.js';
import { byId, download, h, icon, nameOf } from './dom.js';
import { DuplicatesView } from './duplicates.js';
import { keepButton } from './feedback.js';
import { Grid } from './grid.js';
import { MapView } from './map.js';
import { Panel } from './panel.js';
import { FILTERS, asks, fromAddress, sameSearch, toAddress } from './state.js';
import { Viewer } from './viewer.js';
import { fillIn, t } from './words.js';

const FIRST = 24; // hits; what fits a screen, there the sooner for being few
const PAGE = 60; // hits, while one scrolls
const AHEAD = 1600; // px below the screen at which more are asked for
const TYPED = 280; // ms of rest after which what is typed is searched
const PATIENCE = 350; // ms without an answer after which something is said

let state = fromAddress();
let answered = null; // the state that the grid shows
let cursor = null;
let asking = null; // AbortController of the search that goes on
let isTyping = false;
let focusAfter = null; // the tile that the viewer was opened from
const selection = new Map(); // id -> hit
const known = new Map(); // id -> hit or item, for names
const previews = new Map(); // vector -> address of the picture that it is of

const box = byId('words');
const filters = byId('filters');
const message = byId('message');
const notice = byId('notice');

const grid = new Grid(byId('results'), {
  address: (hit) => toAddress({ ...state, item: hit.id }),
  toggle,
  selected: (id) => selection.has(id),
});
const viewer = new Viewer(byId('viewer'), {
  close: () => go({ item: '' }),
  go: (step) => showBeside(step),
  more: (hit) => refine(hit, 'like', 'unlike'),
  less: (hit) => refine(hit, 'unlike', 'like'),
  toggle,
  selected: (id) => selection.has(id),
  filter: (changes) => go({ ...changes, item: '' }),
});
const map = new MapView(byId('map'), {
  open: (item) => go({ item }),
  address: (item) => toAddress({ ...state, item }),
  select: (items) => select(items),
  selected: () => selection.keys(),
  failed: (error) => failed(error),
  fallback: () => panel.show().catch(failed),
});
const duplicates = new DuplicatesView(byId('duplicates'), {
  open: (item) => go({ item }),
  address: (item) => toAddress({ ...state, item }),
  select: (copies) => select(copies),
  toggle,
  selected: (id) => selection.has(id),
  failed: (error) => failed(error),
});
const panel = new Panel(byId('panel'), () => go({ view: 'duplicates', item: '' }), () => {
  answered = null;
  map.reload();
  render();
});

// From one state to the next

/** Change what is asked or shown; the address follows, so that the back button leads to what was before. */
function go(changes, { replaces = false } = {}) {
  const next = { ...state, ...changes };
  if (!('view' in changes) && !sameSearch(next, state)) next.view = ''; // what is found is shown as pictures
  if (toAddress(next) !== toAddress(state)) {
    history[replaces ? 'replaceState' : 'pushState'](null, '', toAddress(next));
  }
  state = next;
  render();
}

addEventListener('popstate', () => {
  state = fromAddress();
  isTyping = false;
  render();
});

function render() {
  if (!isTyping && box.value !== state.q) box.value = state.q;
  document.title = state.q ? `${state.q} · mmsearch` : 'mmsearch';
  renderChips();
  renderFilters();
  renderView();
  if (!state.view && (!answered || !sameSearch(state, answered))) search();
  renderViewer();
}

function renderChips() {
  const chip = (what, picture, remove) => h('li', { class: 'chip' }, picture, h('span', {}, what),
    h('button', { type: 'button', class: 'icon', 'aria-label': t('removeChip', { what }), onclick: remove }, icon('close')));
  const items = (key, text) => state[key].map((id) => chip(t(text, { name: nameOf(known.get(id) ?? { id }) }),
    h('img', { src: api.thumbnail(id, 320), alt: '' }), () => go({ [key]: state[key].filter((other) => other !== id) })));
  byId('chips').replaceChildren(
    ...state.vectors.map((vector) => chip(t('pictureChip'),
      previews.has(vector) ? h('img', { src: previews.get(vector), alt: '' }) : icon('picture'),
      () => go({ vectors: state.vectors.filter((other) => other !== vector) }))),
    ...items('like', 'likeChip'), ...items('unlike', 'unlikeChip'),
    ...[keepButton(state, (text) => { byId('count').textContent = text; }, failed)].filter(Boolean));
  for (const id of [...state.like, ...state.unlike]) {
    if (!known.has(id)) {
      known.set(id, { id });
      api.item(id).then((item) => { known.set(id, item); renderChips(); }, () => {});
    }
  }
}

function renderFilters() {
  const set = FILTERS.filter((key) => state[key]);
  for (const key of FILTERS) filters.elements[key].value = state[key];
  byId('filter-count').textContent = String(set.length);
  byId('filter-count').hidden = !set.length;
}

function renderView() {
  document.body.dataset.view = state.view;
  byId('show-map').setAttribute('aria-pressed', String(state.view === 'map'));
  map.show(state.view === 'map');
  duplicates.show(state.view === 'duplicates');
}

function renderViewer() {
  if (!state.item) {
    if (!viewer.isOpen) return;
    viewer.close();
    if (state.view === 'map') map.focus();
    else if (state.view === 'duplicates') duplicates.focus(focusAfter);
    else grid.focus(focusAfter);
    return;
  }
  focusAfter = state.item;
  const hit = grid.hits.find((one) => one.id === state.item);
  const neighbours = { before: Boolean(hit && grid.beside(hit.id, -1)), behind: Boolean(hit && grid.beside(hit.id, 1)) };
  const shown = hit ? viewer.show(hit, neighbours)
    : api.item(state.item).then((item) => state.item === item.id && viewer.show(item, neighbours));
  shown.catch(failed);
}

async function showBeside(step) {
  let beside = grid.beside(state.item, step);
  if (!beside && step > 0 && cursor) {
    await loadMore();
    beside = grid.beside(state.item, step);
  }
  if (beside) go({ item: beside.id }, { replaces: true });
}

// Searching

async function search() {
  asking?.abort();
  const mine = asking = new AbortController();
  const asked = answered = state;
  cursor = null;
  notice.hidden = true;
  if (!asks(asked)) {
    showNothing();
    byId('results').removeAttribute('aria-busy');
    return welcome(mine);
  }
  byId('results').setAttribute('aria-busy', 'true');
  const slow = setTimeout(sayWhatIsWaitedFor, PATIENCE, mine);
  try {
    const page = await api.search(asked, FIRST, mine.signal);
    showNothing();
    scrollTo({ top: 0 });
    show(page);
    if (!page.hits.length) nothingFound(asked);
    if (state.item) renderViewer(); // which now has neighbours
  } catch (error) {
    if (error.name === 'AbortError') return undefined;
    answered = null;
    await searchFailed(error);
  } finally {
    clearTimeout(slow);
    if (asking === mine) byId('results').removeAttribute('aria-busy');
  }
  return loadWhatFits();
}

function show(page) {
  for (const hit of page.hits) known.set(hit.id, hit);
  grid.add(page.hits);
  cursor = page.cursor;
  const count = grid.hits.length;
  byId('count').textContent = cursor ? t('foundMore', { count }) : count ? t('found', { count }) : '';
}

function showNothing() {
  grid.clear();
  byId('end').replaceChildren();
  message.replaceChildren();
  byId('count').textContent = '';
}

let isLoading = false; // as many pages as fit
let loading = null; // the page of hits that is on its way
function loadMore() {
  loading ??= loadPage().finally(() => { loading = null; });
  return loading;
}

async function loadPage() {
  const mine = asking;
  const page = await api.search(answered, PAGE, mine.signal, cursor).catch((error) => {
    if (error.name === 'AbortError' || mine !== asking) return null;
    throw error;
  });
  if (page && mine === asking) show(page);
}

const isWanted = () => cursor && !state.view && byId('end').getBoundingClientRect().top < innerHeight + AHEAD;

/** Load pages until the last hit is far enough below the screen. After a failure it waits to be asked by hand. */
async function loadWhatFits({ isAsked = true } = {}) {
  const hasFailed = byId('end').hasChildNodes();
  if (isLoading || !isWanted() || (hasFailed && !isAsked)) return;
  isLoading = true;
  byId('end').replaceChildren();
  try {
    while (isWanted()) await loadMore();
  } catch (error) {
    byId('end').replaceChildren(h('button', { type: 'button', class: 'button', onclick: loadWhatFits }, t('tryAgain')));
    failed(error);
  } finally {
    isLoading = false;
  }
}

// Asked at each of these, not of an IntersectionObserver: that tells changes from one frame to the next, and is silent
// for good where the end was out of the screen and is in it again before a busy browser draws.
const seen = () => loadWhatFits({ isAsked: false });
for (const event of ['scroll', 'scrollend', 'resize']) addEventListener(event, seen, { passive: true });
new ResizeObserver(seen).observe(byId('results'));

// What is said when there is nothing to show

async function welcome(mine) {
  const slow = setTimeout(sayWhatIsWaitedFor, PATIENCE, mine);
  try {
    const status = await api.status();
    if (mine !== asking) return;
    offerFolders(status.roots);
    if (!status.exists) return emptyIndex();
    message.replaceChildren(
      h('h2', {}, t('welcome')),
      h('p', {}, t('welcomeHint')),
      h('p', { class: 'examples' }, t('examples').map((text) => h('button', { type: 'button', class: 'button',
        onclick: () => go({ q: text }) }, text))),
      h('p', { class: 'quiet' }, t('holds', { what: ['images', 'passages'].filter((kind) => status[kind])
        .map((kind) => t(kind, { count: status[kind] })).join(', ') })),
      h('p', { class: 'quiet keys' }, t('keys')));
    if (status.model_state === 'failed') message.append(h('p', { class: 'wrong' }, t('modelFailed'), ' ', status.model_error));
  } catch (error) {
    await searchFailed(error);
  } finally {
    clearTimeout(slow);
  }
}

async function emptyIndex() {
  const { allowed } = await api.indexState();
  message.replaceChildren(h('h2', {}, t('emptyIndex')), ...(allowed.length
    ? [h('p', {}, t('emptyHint')),
      h('p', {}, h('button', { type: 'button', class: 'button primary', onclick: () => panel.show() }, t('indexTitle')))]
    : [h('p', {}, t('emptyNotAllowed')), h('pre', {}, 'mmsearch index FOLDER\nmmsearch serve --allow FOLDER')]));
}

function nothingFound(asked) {
  const isFiltered = FILTERS.some((key) => asked[key]);
  message.replaceChildren(h('h2', {}, t('nothing')), h('p', {}, t(isFiltered ? 'nothingFiltered' : 'nothingHint')),
    ...(isFiltered ? [h('p', {}, h('button', { type: 'button', class: 'button primary', onclick: clearFilters },
      t('clearFilters')))] : []));
}

async function sayWhatIsWaitedFor(mine) {
  const status = await api.status().catch(() => null);
  if (mine !== asking || !byId('results').hasAttribute('aria-busy')) return;
  byId('count').textContent = t(status?.model_state === 'loading' ? 'loading' : 'searching');
}

async function searchFailed(error) {
  showNothing();
  if (error instanceof api.Unreachable) return stopped();
  if (error.status === 401) return askForToken();
  const status = error.status === 404 ? await api.status().catch(() => null) : null;
  if (status && !status.exists) return emptyIndex();
  return message.replaceChildren(h('p', { class: 'wrong', role: 'alert' }, error.message),
    h('p', {}, h('button', { type: 'button', class: 'button', onclick: again }, t('tryAgain'))));
}

/** Something beside the search went wrong: said above it, which stays as it is. */
function failed(error) {
  if (error.name === 'AbortError') return;
  if (error instanceof api.Unreachable) return stopped();
  notice.hidden = false;
  notice.textContent = t('failed', { why: error.message });
}

function stopped() {
  notice.hidden = false;
  notice.replaceChildren(t('stopped'), ' ', h('code', {}, 'mmsearch serve'), ' ',
    h('button', { type: 'button', class: 'button', onclick: again }, t('tryAgain')));
  clearInterval(stopped.watch);
  stopped.watch = setInterval(async () => {
    if (await api.isAlive()) again();
  }, 3000);
}

function again() {
  clearInterval(stopped.watch);
  notice.hidden = true;
  answered = null;
  render();
}

function askForToken() {
  const input = h('input', { type: 'password', autocomplete: 'current-password', 'aria-label': t('token'), required: true });
  const wrong = h('p', { class: 'wrong', role: 'alert' });
  message.replaceChildren(h('h2', {}, t('tokenTitle')), h('p', {}, t('tokenHint')),
    h('form', { class: 'line', onsubmit: async (event) => {
      event.preventDefault();
      await api.logIn(input.value).then(again, () => { wrong.textContent = t('tokenWrong'); });
    } }, input, h('button', { type: 'submit', class: 'button primary' }, t('enter'))), wrong);
  input.focus();
}

// The box

function searchTyped(isDone) {
  clearTimeout(searchTyped.timer);
  const wasTyping = isTyping;
  isTyping = !isDone;
  go({ q: box.value, item: '', view: '' }, { replaces: wasTyping });
}

box.addEventListener('input', () => {
  clearTimeout(searchTyped.timer);
  searchTyped.timer = setTimeout(searchTyped, TYPED, false);
});
box.addEventListener('blur', () => { isTyping = false; });
byId('search').addEventListener('submit', (event) => {
  event.preventDefault();
  searchTyped(true);
});
for (const home of document.querySelectorAll('[data-home]')) {
  home.addEventListener('click', (event) => {
    event.preventDefault();
    isTyping = false;
    go(fromAddress(''));
    box.focus();
  });
}

async function searchPicture(file) {
  if (!file) return;
  byId('count').textContent = t('reading');
  try {
    const { vectors: [vector] } = await api.encodePicture(file);
    const letters = api.packed(vector);
    previews.set(letters, URL.createObjectURL(file));
    go({ vectors: [letters], like: [], unlike: [], item: '' });
  } catch (error) {
    byId('count').textContent = '';
    failed(error);
  }
}

byId('choose').addEventListener('click', () => byId('picture').click());
byId('picture').addEventListener('change', (event) => {
  searchPicture(event.target.files[0]);
  event.target.value = '';
});
addEventListener('paste', (event) => {
  const file = [...event.clipboardData.files].find((one) => one.type.startsWith('image/'));
  if (file) {
    event.preventDefault();
    searchPicture(file);
  }
});

let isOwnDrag = false; // of a tile, which is no picture from outside
addEventListener('dragstart', () => { isOwnDrag = true; });
addEventListener('dragend', () => { isOwnDrag = false; });
addEventListener('dragover', (event) => {
  if (isOwnDrag || !event.dataTransfer.types.includes('Files')) return;
  event.preventDefault();
  byId('drop').classList.add('open');
});
addEventListener('dragleave', (event) => event.relatedTarget === null && byId('drop').classList.remove('open'));
addEventListener('drop', (event) => {
  byId('drop').classList.remove('open');
  if (isOwnDrag || !event.dataTransfer.files.length) return;
  event.preventDefault();
  searchPicture(event.dataTransfer.files[0]);
});

function refine(hit, key, other) {
  known.set(hit.id, hit);
  go({ [key]: [...new Set([...state[key], hit.id])], [other]: state[other].filter((id) => id !== hit.id), item: '' });
}

// Filters

function showFilters(is) {
  filters.hidden = !is;
  byId('show-filters').setAttribute('aria-expanded', String(is));
}

byId('show-filters').addEventListener('click', () => {
  showFilters(filters.hidden);
  if (!filters.hidden) filters.querySelector(':checked').focus();
});
filters.addEventListener('submit', (event) => {
  event.preventDefault();
  const values = Object.fromEntries(FILTERS.map((key) => [key, filters.elements[key].value.trim()]));
  go({ ...values, near: values.near.replace(/\s/g, '') });
});
for (const input of filters.querySelectorAll('[data-wrong]')) { // in the page's words, not in the browser's
  input.addEventListener('invalid', () => input.setCustomValidity(t(input.dataset.wrong)));
  input.addEventListener('input', () => input.setCustomValidity(''));
}
filters.addEventListener('change', (event) => event.target.name === 'kind' && filters.requestSubmit());
filters.addEventListener('reset', (event) => {
  event.preventDefault();
  clearFilters();
});
const clearFilters = () => go(Object.fromEntries(FILTERS.map((key) => [key, ''])));
const offerFolders = (roots) => byId('folders').replaceChildren(...roots.map((root) => h('option', { value: root })));

// Selection

function toggle(hit) {
  if (!selection.delete(hit.id)) selection.set(hit.id, hit);
  viewer.refresh(hit);
  showSelection();
}

function select(hits) {
  for (const hit of hits) selection.set(hit.id, hit);
  showSelection();
}

function showSelection() {
  grid.refreshSelection();
  map.refreshSelection();
  duplicates.refreshSelection();
  byId('selection').hidden = !selection.size;
  grid.container.classList.toggle('selecting', selection.size > 0);
  byId('selected').textContent = t('selected', { count: selection.size });
}

function clearSelection() {
  selection.clear();
  showSelection();
}

const lines = (values) => new Blob([values.map((value) => `${value}\n`).join('')], { type: 'text/plain' });
byId('save-paths').addEventListener('click', () =>
  download('mmsearch.txt', lines([...selection.values()].flatMap((hit) => (hit.path ? [hit.path] : [])))));
byId('save-json').addEventListener('click', () =>
  download('mmsearch.json', new Blob([JSON.stringify([...selection.values()], null, 2)], { type: 'application/json' })));
byId('save-zip').addEventListener('click', async (event) => {
  const button = event.currentTarget;
  button.disabled = true;
  byId('selected').textContent = t('zipping');
  try {
    download('mmsearch.zip', await api.zip([...selection.keys()]));
  } catch (error) {
    failed(error);
  }
  button.disabled = false;
  byId('selected').textContent = t('selected', { count: selection.size });
});
byId('clear-selection').addEventListener('click', clearSelection);

byId('show-map').addEventListener('click', () => go({ view: state.view === 'map' ? '' : 'map', item: '' }));
byId('show-status').addEventListener('click', () => panel.show().catch(failed));
byId('results').addEventListener('click', (event) => {
  const link = event.target.closest('.open');
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  go({ item: link.closest('.tile').dataset.id });
});

// Keys

addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || byId('panel').open) return;
  const isArrow = event.key.startsWith('Arrow');
  if (event.target.matches('input, select, textarea')) {
    if (event.target === box && event.key === 'ArrowDown' && grid.hits.length) {
      event.preventDefault();
      grid.focus(null);
    } else if (event.key === 'Escape') {
      event.target.blur();
    }
  } else if (viewer.isOpen) {
    if (event.key === 'ArrowLeft' || event.key === 'ArrowRight') showBeside(event.key === 'ArrowLeft' ? -1 : 1);
    else if (event.key === 'x') toggle(known.get(state.item) ?? { id: state.item });
  } else if (event.key === '/') {
    event.preventDefault();
    box.focus();
    box.select();
  } else if (isArrow && grid.hits.length && !state.view) {
    if (grid.move(event.key)) event.preventDefault();
    else if (event.key === 'ArrowDown' || event.key === 'ArrowRight') {
      event.preventDefault();
      grid.focus(null);
    }
  } else if (event.key === 'x') {
    const id = document.activeElement?.closest?.('.tile')?.dataset.id;
    if (id) toggle(known.get(id) ?? duplicates.copy(id));
  } else if (event.key === 'Escape') {
    clearSelection();
  }
});

// Begin

fillIn(document);
const token = new URLSearchParams(location.hash.slice(1)).get('token');
if (token) {
  history.replaceState(null, '', toAddress(state)); // it must stay neither in the address nor in the history
  await api.logIn(token).catch(() => {});
}
showFilters(FILTERS.some((key) => state[key]));
render();
if (!state.item && !state.view && matchMedia('(pointer: fine)').matches) box.focus();
