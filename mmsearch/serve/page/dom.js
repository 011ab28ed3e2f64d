// Making elements. Whatever comes from files, captions or people goes in as text; nothing here parses HTML, and the
// server's content security policy (Trusted Types) has the browser refuse it as well.

/** An element with attributes and children; `on…` are listeners, false and null leave an attribute out. */
export function h(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (key.startsWith('on')) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? '' : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export function icon(name) {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  svg.setAttribute('aria-hidden', 'true');
  const use = document.createElementNS('http://www.w3.org/2000/svg', 'use');
  use.setAttribute('href', `#i-${name}`);
  svg.append(use);
  return svg;
}

export const byId = (id) => document.getElementById(id);

/** The last part of a path, as both kinds of system write it. */
export const baseName = (path) => path.split(/[\\/]/).pop() || path;
export const folderOf = (path) => path.slice(0, Math.max(path.length - baseName(path).length - 1, 1));
export const nameOf = (hit) => (hit.path ? baseName(hit.path) : hit.id);

/** Hand a file that was made here to the browser's downloads. */
export function download(name, blob) {
  const link = h('a', { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
