// One hit, large: its facts, why it was found, and the ways on from it.

import * as api from './api.js';
import { baseName, folderOf, h, icon, nameOf } from './dom.js';
import { bytes, moment, t } from './words.js';

const FOUND_BY = { image: 'byImage', text: 'byText', keyword: 'byKeyword' };

export class Viewer {
  #shown = null;

  /** actions: close(), go(step), more(hit), less(hit), toggle(hit), selected(id), filter(changes). */
  constructor(dialog, actions) {
    this.dialog = dialog;
    this.actions = actions;
    dialog.addEventListener('cancel', (event) => {
      event.preventDefault();
      actions.close();
    });
    dialog.addEventListener('click', (event) => {
      if (event.target === dialog) actions.close();
    });
  }

  get isOpen() { return this.dialog.open; }

  close() {
    this.#shown = null;
    if (this.dialog.open) this.dialog.close();
    this.dialog.replaceChildren();
  }

  /** Show a hit, or an item that a link leads to; neighbours: whether there is one before and behind. */
  async show(hit, neighbours) {
    this.#shown = hit.id;
    this.#render(hit, null, neighbours);
    if (!this.dialog.open) this.dialog.showModal();
    this.dialog.querySelector('.viewer-close').focus();
    const item = await api.item(hit.id);
    if (this.#shown === hit.id) this.#render({ ...item, ...hit }, item, neighbours);
  }

  refresh(hit) {
    const button = this.dialog.querySelector('.pick');
    if (!button) return;
    const is = this.actions.selected(hit.id);
    button.setAttribute('aria-pressed', String(is));
    button.lastChild.textContent = t(is ? 'unselectThis' : 'selectThis');
  }

  #render(hit, item, neighbours) {
    const { actions } = this;
    const focused = document.activeElement?.className;
    const control = (name, label, step, is) => h('button', { type: 'button', class: `icon step ${name}`, 'aria-label': label,
      title: label, disabled: !is, onclick: () => actions.go(step) }, icon(name));
    this.dialog.replaceChildren(
      h('div', { class: 'stage' },
        this.#stage(hit, item),
        control('left', t('previous'), -1, neighbours.before),
        control('right', t('next'), 1, neighbours.behind)),
      h('div', { class: 'about' },
        h('header', {},
          h('h2', { id: 'viewer-name', dir: 'auto' }, nameOf(hit)),
          h('button', { type: 'button', class: 'icon viewer-close', 'aria-label': t('close'), title: t('close'),
            onclick: () => actions.close() }, icon('close'))),
        h('div', { class: 'actions' },
          h('button', { type: 'button', class: 'button', onclick: () => actions.more(hit) }, icon('more'), t('more')),
          h('button', { type: 'button', class: 'button', onclick: () => actions.less(hit) }, icon('less'), t('less')),
          h('button', { type: 'button', class: 'button pick', 'aria-pressed': 'false', onclick: () => actions.toggle(hit) },
            icon('check'), h('span', {})),
          hit.path && item?.file_is_there
            ? h('a', { class: 'button', href: api.file(hit.id), target: '_blank', rel: 'noopener' }, t('original')) : null),
        item ? captions(item) : null,
        why(hit),
        item ? this.#facts(hit, item) : null));
    this.refresh(hit);
    if (focused) this.dialog.querySelector(`.${focused.split(' ').join('.')}`)?.focus();
  }

  #stage(hit, item) {
    if (hit.kind === 'text') return h('blockquote', { class: 'passage', dir: 'auto' }, hit.text ?? '');
    if (!hit.path) return h('p', { class: 'missing' }, t('noPicture'));
    if (item && !item.file_is_there) return h('p', { class: 'missing', role: 'alert' }, t('gone'));
    const large = h('img', { class: 'large', alt: hit.text || nameOf(hit), src: api.thumbnail(hit.id, 1600),
      width: hit.width, height: hit.height });
    large.style.backgroundImage = `url("${api.thumbnail(hit.id, 320)}")`; // at once, from the grid
    large.addEventListener('error', () => large.replaceWith(h('p', { class: 'missing', role: 'alert' }, t('gone'))));
    return large;
  }

  #facts(hit, item) {
    const { actions } = this;
    const rows = [];
    const row = (name, ...value) => rows.push(h('div', {}, h('dt', {}, name), h('dd', {}, ...value)));
    if (hit.path) {
      const folder = folderOf(hit.path);
      row(t('factPath'), h('span', { class: 'path', dir: 'auto' }, hit.path), copyButton(hit.path));
      row(t('factFolder'), h('button', { type: 'button', class: 'link', title: t('onlyFolder'),
        onclick: () => actions.filter({ under: folder }) }, baseName(folder)));
    }
    if (hit.line) row(t('factLine'), String(hit.line));
    const size = [hit.width && `${hit.width} × ${hit.height}`, hit.format, item.size_bytes && bytes(item.size_bytes)];
    if (size.some(Boolean)) row(t('factSize'), size.filter(Boolean).join(' · '));
    if (hit.taken_at) row(t('factTaken'), moment(hit.taken_at));
    if (hit.camera) row(t('factCamera'), hit.camera);
    if (hit.latitude_deg !== null && hit.latitude_deg !== undefined) {
      const place = [hit.latitude_deg, hit.longitude_deg].map((degrees) => degrees.toFixed(5));
      row(t('factPlace'), h('button', { type: 'button', class: 'link', title: t('onlyNear'),
        onclick: () => actions.filter({ near: `${place.join(',')},10` }) }, place.join(', ')));
    }
    if (item.modified_at) row(t('factModified'), moment(item.modified_at));
    for (const [key, value] of Object.entries(hit.facts ?? {})) {
      row(key, typeof value === 'string' ? value : JSON.stringify(value));
    }
    return h('section', {}, h('h3', {}, t('facts')), h('dl', {}, rows));
  }
}

function why(hit) {
  const found = Object.entries(hit.found_by ?? {});
  if (!found.length) return null;
  return h('section', {}, h('h3', {}, t('why')),
    h('ul', { class: 'why' }, found.map(([ranking, rank]) => h('li', {}, t(FOUND_BY[ranking], { rank })))),
    h('p', { class: 'quiet', title: t('scoreHelp') }, t('score', { score: hit.score.toFixed(3) })));
}

function captions(item) {
  if (!item.captions.length) return null;
  return h('section', {}, h('h3', {}, t('captions')),
    h('ul', { class: 'captions' }, item.captions.map((text) => h('li', { dir: 'auto' }, text))));
}

function copyButton(path) {
  const button = h('button', { type: 'button', class: 'link copy', onclick: async () => {
    try {
      await navigator.clipboard.writeText(path);
      button.textContent = t('copied');
    } catch { // a page that came over plain HTTP from another machine may not
      getSelection().selectAllChildren(button.previousSibling);
      button.textContent = t('copyFailed');
    }
    setTimeout(() => { button.textContent = t('copyPath'); }, 2500);
  } }, t('copyPath'));
  return button;
}
