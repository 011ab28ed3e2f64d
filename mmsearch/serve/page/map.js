// The map of the collection: all items as points, those that are alike near to one another. Pan, zoom, hover, lasso.
// Points are drawn into pixels here, not by a graphics card: 100,000 of them take a few milliseconds on any machine.

import * as api from './api.js';
import { h, icon, nameOf } from './dom.js';
import { t } from './words.js';

const MOST_PIXELS = 2_600_000; // of the canvas; beyond, the screen scales it up
const DEEPEST = 400; // times the whole map
const CELL = 76; // px on the screen: a square so large shows one picture at most; one twice as large is divided
const PICTURE = 100; // px of a picture's longer side at the most
const REACH = 14; // px between the pointer and a point that it means
const MOST_SELECTED = 10_000;
const MOST_ITEMS = 1_000; // in one request
const LISTED = 24; // items named for those who do not see the map
const REST = 180; // ms without movement after which pictures and names are looked for
const WAIT = 700; // ms between two looks at the work on the map
const WIDEST = 1.9; // how much one direction may be stretched over the other to fill the screen
const INK = 0.55; // how much of the ground one point covers; where many lie it grows darker
const STEPS = 16; // of a pixel's coverage by a point

export class MapView {
  #points = null; // { count, numbers, x, y, isText }
  #view = { x: 0.5, y: 0.5, zoom: 1 }; // what is in the middle, and how many times larger than the whole
  #chosen = new Uint8Array(0); // by place of a point: 1 for selected
  #places = new Map(); // id -> place
  #pictures = new Map(); // number -> a thumbnail as it is drawn
  #picked = []; // places of points that are shown as pictures
  #lasso = null; // [x, y, …] on the map while one is drawn
  #pointers = new Map();
  #asking = 0; // grows with each look at the server, so that a late answer is not taken for a new one
  #tag = null;
  #shown = false;

  /** actions: open(id), address(id), select(items), selected(), failed(error), fallback(). */
  constructor(section, actions) {
    this.section = section;
    this.actions = actions;
    this.#build();
    new ResizeObserver(() => this.#resize()).observe(this.stage);
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => this.#recolour());
  }

  /** Show the map, or not; where it is not up to date, that is begun. */
  show(is) {
    if (is === this.#shown) return;
    this.#shown = is;
    this.section.hidden = !is;
    if (is) this.reload();
    else this.#hideHover();
  }

  focus() { this.canvas.focus(); }

  refreshSelection() {
    this.#chosen.fill(0);
    for (const id of this.actions.selected()) {
      const place = this.#places.get(id) ?? this.#placeOf(id);
      if (place !== undefined) this.#chosen[place] = 1;
    }
    this.#draw();
  }

  /** Look at the server's map again, which may have changed. */
  async reload() {
    if (!this.#shown) return;
    const mine = ++this.#asking;
    try {
      let state = await api.map();
      if (!state.is_current && state.state !== 'running') state = await api.makeMap();
      while (mine === this.#asking && this.#shown) {
        if (state.points !== null) await this.#load();
        this.#say(state);
        if (state.state !== 'running') break;
        await new Promise((done) => { setTimeout(done, WAIT); });
        state = await api.map();
      }
    } catch (error) {
      if (mine === this.#asking) this.actions.failed(error);
    }
  }

  // What is on the page

  #build() {
    const button = (name, label, act) => h('button', { type: 'button', class: 'icon', 'aria-label': t(label),
      title: t(label), onclick: act }, icon(name));
    this.stage = h('div', { class: 'map-stage' });
    this.canvas = h('canvas', { tabindex: 0, role: 'application', 'aria-label': t('mapLabel'), 'aria-describedby': 'map-help' });
    this.above = h('canvas', { 'aria-hidden': 'true', class: 'above' });
    this.hover = h('figure', { class: 'map-hover', 'aria-hidden': 'true' });
    this.work = h('div', { class: 'map-work' });
    this.lassoButton = button('lasso', 'mapLasso', () => this.#setLassoing(!this.isLassoing));
    this.lassoButton.setAttribute('aria-pressed', 'false');
    this.stage.append(this.canvas, this.above, this.work, h('div', { class: 'map-tools', role: 'group', 'aria-label': t('mapTools') },
      button('more', 'zoomIn', () => this.#zoom(1.7)), button('less', 'zoomOut', () => this.#zoom(1 / 1.7)),
      button('whole', 'zoomWhole', () => this.#showWhole()), this.lassoButton), this.hover);
    this.count = h('p', { class: 'quiet', role: 'status' });
    this.all = h('button', { type: 'button', class: 'button', onclick: () => this.#select(this.#inView()) });
    this.list = h('ul', { class: 'strip', 'aria-label': t('mapNearest'), tabindex: 0 });
    this.section.append(h('p', { class: 'hidden', id: 'map-help' }, t('mapKeys')), this.stage,
      h('div', { class: 'map-foot' }, h('div', { class: 'line' }, this.count, this.all), this.list));
    this.canvas.addEventListener('wheel', (event) => this.#wheel(event), { passive: false });
    this.canvas.addEventListener('keydown', (event) => this.#key(event));
    this.canvas.addEventListener('dblclick', (event) => this.#zoom(2.2, this.#at(event)));
    for (const name of ['pointerdown', 'pointermove', 'pointerup', 'pointercancel', 'pointerleave']) {
      this.canvas.addEventListener(name, (event) => this[`_${name}`](event));
    }
    this.#recolour();
  }

  #say({ state, progress, error, points }) {
    const isEmpty = this.#points?.count === 0;
    this.work.hidden = state === 'idle' && points !== null && !isEmpty;
    this.work.classList.toggle('beside', points !== null && !isEmpty);
    if (state === 'running') {
      if (!this.bar?.isConnected) {
        this.bar = h('progress', { max: 1, 'aria-label': t('mapMaking') });
        this.work.replaceChildren(h('p', {}, t(points === null ? 'mapMaking' : 'mapUpdating')), this.bar,
          points === null ? h('p', { class: 'quiet' }, t('mapMakingHint')) : '');
      }
      this.bar.value = progress;
    } else if (state === 'failed') {
      this.work.replaceChildren(h('p', { class: 'wrong', role: 'alert' }, t('mapFailed', { why: error })),
        h('button', { type: 'button', class: 'button', onclick: () => this.reload() }, t('tryAgain')));
    } else {
      this.work.replaceChildren(h('p', {}, t('mapEmpty')),
        h('button', { type: 'button', class: 'button', onclick: this.actions.fallback }, t('status')));
    }
  }

  async #load() {
    const answer = await api.mapPoints();
    if (answer.headers.get('etag') === this.#tag) return;
    const bytes = await answer.arrayBuffer();
    this.#tag = answer.headers.get('etag');
    const count = bytes.byteLength / 9;
    const part = (type, start) => new type(bytes.slice(start * count, (start + type.BYTES_PER_ELEMENT) * count));
    const scaled = (values) => Float32Array.from(values, (value) => value / 65535);
    this.#points = { count, numbers: part(Uint32Array, 0), x: scaled(part(Uint16Array, 4)), y: scaled(part(Uint16Array, 6)),
      isText: part(Uint8Array, 8) };
    this.#chosen = new Uint8Array(count);
    this.#places.clear();
    this.#picked = [];
    this.#moved();
    this.refreshSelection();
  }

  #placeOf(id) {
    const number = /^mm-\d+$/.test(id) ? Number(id.slice(3)) : NaN;
    const { numbers, count } = this.#points ?? { count: 0 };
    let [low, high] = [0, count];
    while (low < high) { // they are in ascending order
      const middle = (low + high) >> 1;
      if (numbers[middle] < number) low = middle + 1;
      else high = middle;
    }
    return low < count && numbers[low] === number ? low : undefined;
  }

  // From the map to the screen; px are those of the page

  #resize() {
    const { clientWidth: width, clientHeight: height } = this.stage;
    if (!width || !height) return;
    this.ratio = Math.min(devicePixelRatio, Math.sqrt(MOST_PIXELS / (width * height)));
    for (const canvas of [this.canvas, this.above]) {
      canvas.width = Math.round(width * this.ratio);
      canvas.height = Math.round(height * this.ratio);
    }
    this.pixels = this.canvas.getContext('2d', { alpha: false }).createImageData(this.canvas.width, this.canvas.height);
    this.colours = new Uint32Array(this.pixels.data.buffer);
    this.covered = new Uint16Array(this.colours.length);
    [this.width, this.height] = [width, height];
    this.#moved();
  }

  /** px of the map's width and height. */
  get #scale() {
    const { width, height } = this;
    return [Math.min(width, WIDEST * height), Math.min(height, WIDEST * width)].map((side) => side * this.#view.zoom);
  }

  #toScreen(x, y) {
    const [across, down] = this.#scale;
    return [(x - this.#view.x) * across + this.width / 2, (y - this.#view.y) * down + this.height / 2];
  }

  #toMap([left, top]) {
    const [across, down] = this.#scale;
    return [(left - this.width / 2) / across + this.#view.x, (top - this.height / 2) / down + this.#view.y];
  }

  #at(event) {
    const box = this.canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  #zoom(factor, at = [this.width / 2, this.height / 2]) {
    const [x, y] = this.#toMap(at);
    this.#view.zoom = Math.min(DEEPEST, Math.max(0.8, this.#view.zoom * factor));
    const [there, below] = this.#toMap(at);
    this.#view.x += x - there;
    this.#view.y += y - below;
    this.#moved();
  }

  #pan(right, down) {
    this.#view.x -= right / this.#scale[0];
    this.#view.y -= down / this.#scale[1];
    this.#moved();
  }

  #showWhole() {
    this.#view = { x: 0.5, y: 0.5, zoom: 1 };
    this.#moved();
  }

  #moved() {
    this.#view.x = Math.min(1, Math.max(0, this.#view.x));
    this.#view.y = Math.min(1, Math.max(0, this.#view.y));
    this.#hideHover();
    this.#draw();
    clearTimeout(this.resting);
    this.resting = setTimeout(() => this.#rest(), REST);
  }

  /** Places of the points on the screen. */
  #inView() {
    if (!this.#points || !this.width) return [];
    const [left, top] = this.#toMap([0, 0]);
    const [right, bottom] = this.#toMap([this.width, this.height]);
    const { count, x, y } = this.#points;
    const found = [];
    for (let place = 0; place < count; place++) {
      if (x[place] >= left && x[place] <= right && y[place] >= top && y[place] <= bottom) found.push(place);
    }
    return found;
  }

  // Drawing

  #recolour() {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => {
      const letters = style.getPropertyValue(name).trim();
      return [1, 3, 5].map((start) => parseInt(letters.slice(start, start + 2), 16));
    };
    const [ground, ink, accent, text] = ['--map', '--dot', '--accent', '--dot-text'].map(colour);
    const mixed = (over) => Uint32Array.from({ length: 12 * STEPS + 1 }, (_, covered) => {
      const share = 1 - (1 - INK) ** (covered / STEPS);
      const [red, green, blue] = ground.map((value, part) => Math.round(value + (over[part] - value) * share));
      return (255 << 24) | (blue << 16) | (green << 8) | red;
    });
    this.ground = mixed(ground)[0];
    this.accent = style.getPropertyValue('--accent');
    this.tones = { ink: mixed(ink), text: mixed(text), accent: mixed(accent) };
    this.#draw();
  }

  /** Draw before the next frame; many calls are one. */
  #draw() {
    this.drawing ??= requestAnimationFrame(() => {
      this.drawing = null;
      this.#drawPoints();
      this.#drawAbove();
    });
  }

  #drawPoints() {
    if (!this.pixels) return;
    this.colours.fill(this.ground);
    if (this.#points) {
      const { isText } = this.#points;
      const chosen = this.#chosen;
      const fewOrMany = this.#points.count > 20_000 ? 1 : this.#points.count > 5_000 ? 1.6 : 2.4; // px
      const radius = Math.min(6, fewOrMany * this.#view.zoom ** 0.33) * this.ratio;
      const hasTexts = isText.includes(1);
      const hasChosen = chosen.includes(1);
      this.#stamp(radius, this.tones.ink, hasTexts || hasChosen ? (place) => !isText[place] && !chosen[place] : null);
      if (hasTexts) this.#stamp(radius, this.tones.text, (place) => isText[place] && !chosen[place]);
      if (hasChosen) this.#stamp(radius + 1.2 * this.ratio, this.tones.accent, (place) => chosen[place]);
    }
    this.canvas.getContext('2d').putImageData(this.pixels, 0, 0);
  }

  /** Draw those points that pass as discs; where more lie upon each other the colour is fuller. */
  #stamp(radius, tones, passes) {
    const { count, x, y } = this.#points;
    const { covered, colours } = this;
    const { width, height } = this.canvas;
    const { offsets, shares } = discOf(radius, width);
    const reach = Math.ceil(radius);
    const [wide, high] = this.#scale.map((side) => side * this.ratio);
    const left = width / 2 - this.#view.x * wide;
    const top = height / 2 - this.#view.y * high;
    covered.fill(0);
    for (let place = 0; place < count; place++) {
      const across = (x[place] * wide + left) | 0;
      const down = (y[place] * high + top) | 0;
      if (across < reach || down < reach || across >= width - reach || down >= height - reach) continue;
      if (passes && !passes(place)) continue;
      const middle = down * width + across;
      for (let part = 0; part < offsets.length; part++) covered[middle + offsets[part]] += shares[part];
    }
    const most = tones.length - 1;
    for (let pixel = 0; pixel < covered.length; pixel++) {
      if (covered[pixel]) colours[pixel] = tones[covered[pixel] < most ? covered[pixel] : most];
    }
  }

  #drawAbove() {
    if (!this.width) return;
    const context = this.above.getContext('2d');
    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    context.clearRect(0, 0, this.width, this.height);
    if (this.#points) {
      const size = this.#pictureSize();
      context.lineWidth = 2.5;
      context.strokeStyle = this.accent;
      for (const place of this.#picked) {
        const picture = this.#pictures.get(this.#points.numbers[place]);
        if (!picture?.width) continue;
        const shrunk = size / Math.max(picture.width, picture.height);
        const [width, height] = [picture.width * shrunk, picture.height * shrunk];
        const [left, top] = this.#toScreen(this.#points.x[place], this.#points.y[place]);
        context.drawImage(picture, left - width / 2, top - height / 2, width, height);
        if (this.#chosen[place]) context.strokeRect(left - width / 2, top - height / 2, width, height);
      }
    }
    if (this.#lasso) {
      context.beginPath();
      for (let part = 0; part < this.#lasso.length; part += 2) {
        context.lineTo(...this.#toScreen(this.#lasso[part], this.#lasso[part + 1]));
      }
      context.closePath();
      context.strokeStyle = this.accent;
      context.lineWidth = 2;
      context.setLineDash([6, 5]);
      context.stroke();
      context.setLineDash([]);
    }
  }

  // Pictures among the points, and their names

  /** Width and height on the map of the cells of which each shows one picture; halved whenever there is room for that. */
  #cell() { return this.#scale.map((side) => 2 ** -Math.floor(Math.log2(side / CELL))); }

  /** px of a picture's longer side: a share of a cell, so that pictures grow as one zooms in. */
  #pictureSize() {
    const [across, down] = this.#scale;
    const [width, height] = this.#cell();
    return 0.66 * Math.min(width * across, height * down);
  }

  #rest() {
    const places = this.#inView();
    if (!this.#points || !this.width) return;
    this.count.textContent = t('mapInView', { count: places.length, total: this.#points.count });
    this.all.textContent = t('mapSelectView', { count: places.length });
    this.all.disabled = !places.length || places.length > MOST_SELECTED;
    this.#picked = this.#pick(places);
    for (const place of this.#picked) this.#fetchPicture(this.#points.numbers[place]);
    this.#draw();
    this.#nameNearest(places).catch(() => {}); // what cannot be named is still on the map
  }

  /** Of each square the picture nearest to its middle, which stays the same however the map is moved. */
  #pick(places) {
    const [width, height] = this.#cell();
    const { x, y, isText } = this.#points;
    const best = new Map(); // square -> [distance, place]
    for (const place of places) {
      if (isText[place]) continue;
      const [column, row] = [Math.floor(x[place] / width), Math.floor(y[place] / height)];
      const away = Math.hypot(x[place] / width - column - 0.5, y[place] / height - row - 0.5);
      const square = column * 65536 + row;
      if (!best.has(square) || away < best.get(square)[0]) best.set(square, [away, place]);
    }
    const chosen = [];
    for (const [, place] of [...best.values()].sort(([one], [other]) => one - other)) {
      const isFree = chosen.every((other) => Math.abs(x[other] - x[place]) > 0.7 * width
        || Math.abs(y[other] - y[place]) > 0.7 * height);
      if (isFree) chosen.push(place);
    }
    return chosen;
  }

  #fetchPicture(number) {
    if (this.#pictures.has(number)) return;
    const picture = h('img', { src: api.thumbnail(`mm-${number}`, 320), alt: '', decoding: 'async' });
    this.#pictures.set(number, {});
    picture.addEventListener('load', () => {
      this.#pictures.set(number, framed(picture, PICTURE * this.ratio));
      this.#draw();
    }, { once: true });
    if (this.#pictures.size > 1_500) this.#pictures.delete(this.#pictures.keys().next().value);
  }

  async #nameNearest(places) {
    const { x, y, numbers } = this.#points;
    const [wide, high] = this.#scale;
    const away = (place) => Math.hypot((x[place] - this.#view.x) * wide, (y[place] - this.#view.y) * high);
    const nearest = places.map((place) => [away(place), place]).sort(([one], [other]) => one - other).slice(0, LISTED);
    const wanted = this.wanted = nearest.map(([, place]) => `mm-${numbers[place]}`);
    const { items } = wanted.length ? await api.items(wanted) : { items: [] };
    if (wanted !== this.wanted) return;
    nearest.forEach(([, place], rank) => this.#places.set(items[rank].id, place));
    this.list.replaceChildren(...items.map((item) => h('li', {}, h('a', { href: this.actions.address(item.id),
      'aria-label': item.kind === 'text' ? item.text : item.text || nameOf(item), title: nameOf(item),
      onclick: (event) => {
        if (event.ctrlKey || event.metaKey || event.shiftKey) return;
        event.preventDefault();
        this.actions.open(item.id);
      } }, item.kind === 'text' ? h('span', {}, item.text.slice(0, 90))
      : h('img', { src: api.thumbnail(item.id, 320), alt: '', loading: 'lazy' })))));
  }

  #hideHover() {
    clearTimeout(this.hovering);
    this.hovered = null;
    this.hover.classList.remove('open');
  }

  /** The place of what is shown at a point of the screen: a picture, else the nearest point. */
  #meant([left, top]) {
    if (!this.#points) return null;
    const half = this.#pictureSize() / 2;
    const [wide, high] = this.#scale;
    const { count, x, y } = this.#points;
    const [across, down] = this.#toMap([left, top]);
    const picture = this.#picked.findLast((place) => {
      const shown = this.#pictures.get(this.#points.numbers[place]);
      return shown?.width && Math.abs(x[place] - across) * wide < half && Math.abs(y[place] - down) * high < half;
    });
    if (picture !== undefined) return picture;
    let [nearest, least] = [null, REACH ** 2];
    for (let place = 0; place < count; place++) {
      const away = ((x[place] - across) * wide) ** 2 + ((y[place] - down) * high) ** 2;
      if (away < least) [nearest, least] = [place, away];
    }
    return nearest;
  }

  #showHover(event) {
    const at = this.#at(event);
    const place = this.#meant(at);
    this.canvas.classList.toggle('on-point', place !== null);
    if (place === null) return this.#hideHover();
    if (place === this.hovered) return undefined;
    this.#hideHover();
    this.hovered = place;
    const id = `mm-${this.#points.numbers[place]}`;
    const name = h('figcaption', {});
    this.hover.replaceChildren(this.#points.isText[place] ? '' : h('img', { src: api.thumbnail(id, 320), alt: '' }), name);
    this.hover.classList.add('open');
    this.hover.classList.toggle('at-left', at[0] > this.width / 2);
    this.hover.classList.toggle('above-it', at[1] > this.height / 2);
    const [left, top] = this.#toScreen(this.#points.x[place], this.#points.y[place]);
    this.hover.style.left = `${left}px`;
    this.hover.style.top = `${top}px`;
    this.hovering = setTimeout(() => api.item(id).then((item) => {
      if (this.hovered === place) name.textContent = item.kind === 'text' ? item.text.slice(0, 240) : item.text || nameOf(item);
    }, () => {}), 60);
    return undefined;
  }

  // Mouse, fingers, keys

  #wheel(event) {
    event.preventDefault();
    const lines = event.deltaMode ? 16 : 1;
    this.#zoom(Math.exp(-event.deltaY * lines * (event.ctrlKey ? 0.01 : 0.0018)), this.#at(event));
  }

  _pointerdown(event) {
    if (event.button) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.#pointers.set(event.pointerId, this.#at(event));
    this.isClick = this.#pointers.size === 1;
    if (this.#pointers.size === 1 && (this.isLassoing || event.shiftKey)) this.#lasso = [...this.#toMap(this.#at(event))];
    else this.#lasso = null;
  }

  _pointermove(event) {
    const at = this.#at(event);
    const before = this.#pointers.get(event.pointerId);
    if (!before) {
      if (event.pointerType === 'mouse') this.#showHover(event);
      return;
    }
    if (this.isClick && Math.hypot(at[0] - before[0], at[1] - before[1]) < 4) return;
    this.isClick = false;
    if (this.#lasso) {
      this.#lasso.push(...this.#toMap(at));
      this.#draw();
    } else if (this.#pointers.size === 2) {
      const other = [...this.#pointers].find(([id]) => id !== event.pointerId)[1];
      const apart = (one) => Math.max(1, Math.hypot(one[0] - other[0], one[1] - other[1]));
      this.#zoom(apart(at) / apart(before), other);
    } else {
      this.#pan(at[0] - before[0], at[1] - before[1]);
    }
    this.#pointers.set(event.pointerId, at);
  }

  _pointerup(event) {
    if (!this.#pointers.delete(event.pointerId)) return;
    if (this.#lasso) {
      const around = this.#lasso;
      this.#lasso = null;
      this.#setLassoing(false);
      this.#draw();
      if (!this.isClick) this.#select(this.#inside(around));
    } else if (this.isClick) {
      const place = this.#meant(this.#at(event));
      if (place !== null) this.actions.open(`mm-${this.#points.numbers[place]}`);
    }
  }

  _pointercancel(event) {
    this.#pointers.delete(event.pointerId);
    this.#lasso = null;
    this.#draw();
  }

  _pointerleave() { this.#hideHover(); }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = 0.15 * Math.min(this.width, this.height);
    const acts = {
      ArrowLeft: () => this.#pan(step, 0),
      ArrowRight: () => this.#pan(-step, 0),
      ArrowUp: () => this.#pan(0, step),
      ArrowDown: () => this.#pan(0, -step),
      '+': () => this.#zoom(1.5),
      '=': () => this.#zoom(1.5),
      '-': () => this.#zoom(1 / 1.5),
      0: () => this.#showWhole(),
      Enter: () => this.list.querySelector('a')?.click(),
    };
    if (!acts[event.key]) return;
    event.preventDefault();
    event.stopPropagation();
    acts[event.key]();
  }

  // Selecting

  #setLassoing(is) {
    this.isLassoing = is;
    this.lassoButton.setAttribute('aria-pressed', String(is));
    this.canvas.classList.toggle('lassoing', is);
  }

  /** Places of the points inside of a line around them, by the even-odd rule. */
  #inside(around) {
    const [xs, ys] = [0, 1].map((start) => around.filter((_, part) => part % 2 === start));
    const [left, right, top, bottom] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    const { count, x, y } = this.#points;
    const found = [];
    for (let place = 0; place < count; place++) {
      const [across, down] = [x[place], y[place]];
      if (across < left || across > right || down < top || down > bottom) continue;
      let isIn = false;
      for (let one = 0, other = xs.length - 1; one < xs.length; other = one++) {
        if (ys[one] > down !== ys[other] > down
          && across < ((xs[other] - xs[one]) * (down - ys[one])) / (ys[other] - ys[one]) + xs[one]) isIn = !isIn;
      }
      if (isIn) found.push(place);
    }
    return found;
  }

  async #select(places) {
    if (!places.length) return;
    if (places.length > MOST_SELECTED) {
      this.count.textContent = t('mapTooMany', { count: places.length, most: MOST_SELECTED });
      return;
    }
    try {
      for (let start = 0; start < places.length; start += MOST_ITEMS) {
        const some = places.slice(start, start + MOST_ITEMS);
        const { items } = await api.items(some.map((place) => `mm-${this.#points.numbers[place]}`));
        items.forEach((item, rank) => this.#places.set(item.id, some[rank]));
        this.actions.select(items);
      }
    } catch (error) {
      this.actions.failed(error);
    }
  }
}

/** The pixels of a disc about one of them: how far they are from it in a picture of that width, and how much they are covered. */
function discOf(radius, width) {
  const offsets = [];
  const shares = [];
  const reach = Math.ceil(radius);
  for (let down = -reach; down <= reach; down++) {
    for (let across = -reach; across <= reach; across++) {
      const share = Math.round(STEPS * Math.min(1, Math.max(0, radius + 0.5 - Math.hypot(across, down))));
      if (share) {
        offsets.push(down * width + across);
        shares.push(share);
      }
    }
  }
  return { offsets: Int32Array.from(offsets), shares: Uint8Array.from(shares) };
}

/** A thumbnail with a white edge, made once: to shrink a larger one in every frame costs more than all the points. */
function framed(picture, most) {
  const shrunk = Math.min(1, most / Math.max(picture.naturalWidth, picture.naturalHeight));
  const [width, height] = [picture.naturalWidth, picture.naturalHeight].map((side) => Math.max(1, Math.round(side * shrunk)));
  const canvas = h('canvas', { width: width + 8, height: height + 8 });
  const context = canvas.getContext('2d');
  context.fillStyle = '#fff';
  context.strokeStyle = '#0003';
  context.beginPath();
  context.roundRect(0.5, 0.5, width + 7, height + 7, 6);
  context.fill();
  context.stroke();
  context.drawImage(picture, 4, 4, width, height);
  return canvas;
}
