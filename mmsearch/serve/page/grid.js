// Hits as a justified grid: rows as wide as the page, pictures uncropped, texts as cards among them.
// Rows off the screen are left unpainted by the browser (content-visibility), so that thousands scroll smoothly.

import * as api from './api.js';
import { baseName, folderOf, h, icon, nameOf } from './dom.js';
import { t } from './words.js';

const gap = () => parseFloat(getComputedStyle(document.documentElement).getPropertyValue('--gap')); // px
const FLATTEST = 3.2;
const TALLEST = 0.42; // width over height; what goes beyond is shown whole on a ground of its own
const CARD = 1.35;

export class Grid {
  #hits = [];
  #tiles = new Map(); // id -> tile
  #rest = []; // of the last row, which is filled when more hits come
  #restRow = null;

  /** address: where a hit leads to; toggle: select a hit or not; selected: whether an id is. */
  constructor(container, { address, toggle, selected }) {
    this.container = container;
    this.address = address;
    this.toggle = toggle;
    this.selected = selected;
    let width = 0;
    new ResizeObserver(([entry]) => {
      if (Math.abs(entry.contentRect.width - width) > 1) this.#layOutAnew();
      width = entry.contentRect.width;
    }).observe(container);
  }

  get hits() { return this.#hits; }

  clear() {
    this.#hits = [];
    this.#tiles.clear();
    this.#rest = [];
    this.#restRow = null;
    this.container.replaceChildren();
  }

  /** Put hits behind those that are shown. */
  add(hits) {
    this.#hits = this.#hits.concat(hits);
    this.#place(hits);
  }

  tile(id) { return this.#tiles.get(id); }

  /** The hit beside one, to the left (-1) or right (1). */
  beside(id, step) { return this.#hits[this.#hits.findIndex((hit) => hit.id === id) + step]; }

  focus(id) {
    const tile = this.#tiles.get(id) ?? this.container.querySelector('.tile');
    if (!tile) return;
    for (const other of this.container.querySelectorAll('.open[tabindex="0"]')) other.tabIndex = -1;
    const link = tile.querySelector('.open');
    link.tabIndex = 0;
    link.focus();
    tile.scrollIntoView({ block: 'nearest' });
  }

  /** Move the focus with an arrow key from the tile that has it; whether there was one. */
  move(key) {
    const tile = document.activeElement?.closest?.('.tile');
    if (!tile) return false;
    const tiles = [...this.#tiles.values()];
    const place = tiles.indexOf(tile);
    let next;
    if (key === 'ArrowLeft') next = tiles[place - 1];
    else if (key === 'ArrowRight') next = tiles[place + 1];
    else next = this.#inRow(tile, key === 'ArrowDown' ? 'nextElementSibling' : 'previousElementSibling');
    if (next) this.focus(next.dataset.id);
    return true;
  }

  refreshSelection() {
    for (const [id, tile] of this.#tiles) this.#mark(tile, id);
  }

  #inRow(tile, sibling) {
    const row = tile.parentElement[sibling];
    if (!row) return null;
    const middle = (box) => box.left + box.width / 2;
    const here = middle(tile.getBoundingClientRect());
    const distance = (other) => Math.abs(middle(other.getBoundingClientRect()) - here);
    return [...row.children].reduce((best, other) => (distance(other) < distance(best) ? other : best));
  }

  #layOutAnew() {
    const hits = this.#hits;
    const focused = document.activeElement?.closest?.('.tile')?.dataset.id;
    this.container.replaceChildren();
    this.#rest = [];
    this.#restRow = null;
    this.#place(hits);
    if (focused) this.#tiles.get(focused)?.querySelector('.open').focus();
  }

  #place(hits) {
    const width = this.container.clientWidth;
    if (!width) return;
    const between = gap();
    const height = width < 600 ? 132 : width < 1100 ? 180 : 210;
    this.#restRow?.remove();
    let row = this.#rest;
    let ratios = row.reduce((sum, hit) => sum + ratio(hit), 0);
    for (const hit of hits) {
      row.push(hit);
      ratios += ratio(hit);
      if (ratios * height + between * (row.length - 1) >= width) {
        this.container.append(this.#row(row, (width - between * (row.length - 1)) / ratios));
        [row, ratios] = [[], 0];
      }
    }
    this.#rest = row;
    this.#restRow = row.length ? this.#row(row, height) : null;
    if (this.#restRow) this.container.append(this.#restRow);
  }

  #row(hits, height) {
    const row = h('div', { class: 'row', role: 'presentation' });
    row.style.height = `${height}px`;
    row.style.containIntrinsicHeight = `${height}px`;
    for (const hit of hits) {
      const tile = this.#tiles.get(hit.id) ?? this.#tile(hit);
      const width = ratio(hit) * height;
      tile.style.width = `${width}px`;
      const picture = tile.querySelector('img');
      if (picture) picture.sizes = `${Math.ceil(width)}px`;
      row.append(tile);
    }
    return row;
  }

  #tile(hit) {
    const name = nameOf(hit);
    const label = hit.kind === 'text' ? hit.text : hit.text || name;
    const link = h('a', { class: 'open', href: this.address(hit), tabindex: this.#tiles.size ? -1 : 0,
      'aria-label': hit.kind === 'text' ? null : label },
    hit.kind === 'text' ? card(hit) : picture(hit, label));
    const tick = h('button', { class: 'tick', type: 'button', role: 'checkbox', tabindex: -1,
      'aria-label': t('select', { name }), onclick: () => this.toggle(hit) }, icon('check'));
    const tile = h('div', { class: `tile ${hit.kind}`, role: 'listitem', 'data-id': hit.id, title: hit.path ?? hit.id },
      link, tick);
    this.#tiles.set(hit.id, tile);
    this.#mark(tile, hit.id);
    return tile;
  }

  #mark(tile, id) {
    const is = this.selected(id);
    tile.classList.toggle('selected', is);
    tile.querySelector('.tick').setAttribute('aria-checked', String(is));
  }
}

const exactRatio = (hit) => (hit.kind === 'text' || !hit.width || !hit.height ? CARD : hit.width / hit.height);
const ratio = (hit) => Math.min(Math.max(exactRatio(hit), TALLEST), FLATTEST);

function picture(hit, label) {
  if (!hit.path) return h('span', { class: 'missing' }, hit.text || hit.id);
  const image = h('img', {
    class: exactRatio(hit) === ratio(hit) ? null : 'whole', alt: label, decoding: 'async', loading: hit.rank > 40 ? 'lazy' : 'eager',
    srcset: `${api.thumbnail(hit.id, 320)} 320w, ${api.thumbnail(hit.id, 640)} 640w`, src: api.thumbnail(hit.id, 320),
  });
  image.addEventListener('error', () => image.replaceWith(
    h('span', { class: 'missing' }, h('b', {}, t('goneShort')), baseName(hit.path))), { once: true });
  image.addEventListener('load', () => image.classList.add('there'), { once: true });
  return image;
}

function card(hit) {
  const where = hit.path ? [baseName(hit.path), baseName(folderOf(hit.path))] : [hit.id];
  return h('span', { class: 'card' }, h('span', { class: 'said', dir: 'auto' }, (hit.text ?? '').slice(0, 600)),
    h('span', { class: 'quiet' }, where.join(' · ')));
}
