// What is asked, in the address: a link can be kept, back and forward work, a reload changes nothing.

const SINGLE = ['q', 'kind', 'under', 'after', 'before', 'near', 'view', 'item'];
const MANY = { like: 'like', unlike: 'unlike', vectors: 'v' };
export const FILTERS = ['kind', 'under', 'after', 'before', 'near'];

/** The state that an address says; what is not in it is empty. */
export function fromAddress(address = location.search) {
  const params = new URLSearchParams(address);
  const state = Object.fromEntries(SINGLE.map((key) => [key, params.get(key) ?? '']));
  for (const [key, name] of Object.entries(MANY)) {
    state[key] = params.getAll(name).filter((value) => key !== 'vectors' || /^[\w-]{8,12000}$/.test(value));
  }
  return state;
}

export function toAddress(state) {
  const params = new URLSearchParams();
  for (const key of SINGLE) if (state[key]) params.set(key, state[key]);
  for (const [key, name] of Object.entries(MANY)) for (const value of state[key]) params.append(name, value);
  const query = params.toString();
  return query ? `/?${query}` : '/';
}

/** Whether anything is asked; filters alone find nothing. */
export const asks = (state) => Boolean(state.q.trim() || state.like.length || state.unlike.length || state.vectors.length);

/** Whether two states ask the same, whatever is shown large and how it is looked at. */
export const sameSearch = (one, other) => asked(one) === asked(other);
const asked = (state) => toAddress({ ...state, item: '', view: '' });
