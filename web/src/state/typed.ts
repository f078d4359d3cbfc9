// What a person has typed and not sent: kept by the browser over reloads, until it is sent or thrown away. Small, bounded
// and without any credential; where the browser keeps nothing, it lasts as long as the page.

const DATABASE = 'rejoin-typed';
const STORE = 'typed';
/** Of so many forms, those typed into last. */
const MAX_FORMS = 20;
const MAX_BYTES = 64_000;

export type Typed = Record<string, string>;

interface Kept {
  form: string;
  at: number;
  values: Typed;
}

const memory = new Map<string, Typed>();

function request<T>(asked: IDBRequest<T>): Promise<T> {
  return new Promise((done, failed) => {
    asked.onsuccess = () => done(asked.result);
    asked.onerror = () => failed(asked.error ?? new Error('refused'));
  });
}

async function store(mode: IDBTransactionMode): Promise<IDBObjectStore> {
  const opening = indexedDB.open(DATABASE, 1);
  opening.onupgradeneeded = () => opening.result.createObjectStore(STORE, { keyPath: 'form' });
  const database = await request(opening);
  const transaction = database.transaction(STORE, mode);
  transaction.oncomplete = transaction.onabort = () => database.close();
  return transaction.objectStore(STORE);
}

export async function recall(form: string): Promise<Typed | null> {
  try {
    const kept = (await request((await store('readonly')).get(form))) as Kept | undefined;
    return kept?.values ?? memory.get(form) ?? null;
  } catch {
    return memory.get(form) ?? null;
  }
}

export async function remember(form: string, values: Typed): Promise<void> {
  memory.set(form, values);
  if (JSON.stringify(values).length > MAX_BYTES) return;
  try {
    const forms = await store('readwrite');
    const all = ((await request(forms.getAll())) as Kept[]).sort((a, b) => b.at - a.at);
    for (const old of all.slice(MAX_FORMS - 1)) if (old.form !== form) forms.delete(old.form);
    await request(forms.put({ form, at: Date.now(), values } satisfies Kept));
  } catch {
    // A full disk or a private window: this page remembers.
  }
}

export async function forget(form: string): Promise<void> {
  memory.delete(form);
  try {
    await request((await store('readwrite')).delete(form));
  } catch {
    // There was nothing to forget.
  }
}

/** All of it, e.g. when somebody signs out. */
export async function forgetAll(): Promise<void> {
  memory.clear();
  try {
    await request((await store('readwrite')).clear());
  } catch {
    // As above.
  }
}
