// The page's addresses. `#` is left alone: a sign-in link carries its code there, and nothing else does.

export type Route =
  | { name: 'overview' }
  | { name: 'task'; task: string; run: string | null }
  | { name: 'edit'; task: string }
  | { name: 'new'; from: string | null }
  | { name: 'calendar' }
  | { name: 'notifications' }
  | { name: 'housekeeping' }
  | { name: 'unknown'; path: string };

export function parsePath(path: string): Route {
  const parts = path.split('/').filter((part) => part !== '');
  if (parts.length === 0) return { name: 'overview' };
  const [first, task, second, run] = parts;
  if (first === 'calendar' && parts.length === 1) return { name: 'calendar' };
  if (first === 'notifications' && parts.length === 1) return { name: 'notifications' };
  if (first === 'housekeeping' && parts.length === 1) return { name: 'housekeeping' };
  if (first === 'new' && parts.length <= 2)
    return { name: 'new', from: task === undefined ? null : decode(task) };
  if (first === 'tasks' && task !== undefined) {
    if (parts.length === 2) return { name: 'task', task: decode(task), run: null };
    if (parts.length === 3 && second === 'edit') return { name: 'edit', task: decode(task) };
    if (parts.length === 4 && second === 'runs' && run !== undefined) {
      return { name: 'task', task: decode(task), run: decode(run) };
    }
  }
  return { name: 'unknown', path };
}

function decode(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

export const taskPath = (task: string) => `/tasks/${encodeURIComponent(task)}`;
export const editPath = (task: string) => `${taskPath(task)}/edit`;
export const copyPath = (task: string) => `/new/${encodeURIComponent(task)}`;
export const runPath = (task: string, run: string) => `${taskPath(task)}/runs/${encodeURIComponent(run)}`;

class Router {
  route = $state.raw<Route>(parsePath(location.pathname));

  constructor() {
    window.addEventListener('popstate', () => {
      this.route = parsePath(location.pathname);
    });
    document.addEventListener('click', (event) => {
      if (event.defaultPrevented || event.button !== 0) return;
      if (event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
      const link = event.target instanceof Element ? event.target.closest('a') : null;
      if (link === null || link.target !== '' || link.hasAttribute('download')) return;
      if (link.origin !== location.origin || link.pathname.startsWith('/api/') || link.hash !== '') return;
      event.preventDefault();
      this.go(link.pathname);
    });
  }

  go(path: string): void {
    if (path === location.pathname) return;
    history.pushState(null, '', path);
    this.route = parsePath(path);
    window.scrollTo(0, 0);
    // A reader of the screen is told where it is now, as a new page would.
    requestAnimationFrame(() => document.getElementById('main')?.focus({ preventScroll: true }));
  }
}

export const router = new Router();
