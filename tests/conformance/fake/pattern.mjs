// What a value has to look like (README.md, "Patterns"). Knows no sockets.

/** Absent and null mean the same. */
const there = (value) => value !== undefined && value !== null;

const isObject = (value) => typeof value === 'object' && value !== null && !Array.isArray(value);

const isOperator = (value) => isObject(value) && Object.keys(value).some((key) => key.startsWith('$'));

const shown = (value) => {
  const text = value === undefined ? 'nothing' : JSON.stringify(value);
  return text.length > 600 ? `${text.slice(0, 600)}…` : text;
};

const same = (left, right) =>
  there(left) && there(right)
    ? JSON.stringify(sorted(left)) === JSON.stringify(sorted(right))
    : there(left) === there(right);

function sorted(value) {
  if (Array.isArray(value)) return value.map(sorted);
  if (!isObject(value)) return value;
  return Object.fromEntries(
    Object.keys(value)
      .sort()
      .map((key) => [key, sorted(value[key])]),
  );
}

export class Mismatch extends Error {}

/** Throws a `Mismatch`, with the place, unless `value` is as `pattern` says. What `$save` names goes into `memory`. */
export function check(pattern, value, memory, at = 'value') {
  const wrong = (what) => {
    throw new Mismatch(`${at}: ${what} was to come, not ${shown(value)}`);
  };
  if (isOperator(pattern)) return operators(pattern, value, memory, at, wrong);
  if (Array.isArray(pattern)) {
    if (!Array.isArray(value)) wrong('a list');
    if (value.length !== pattern.length) wrong(`a list of ${pattern.length}`);
    pattern.forEach((item, n) => check(item, value[n], memory, `${at}[${n}]`));
    return;
  }
  if (isObject(pattern)) {
    if (!isObject(value)) wrong('an object');
    for (const [name, member] of Object.entries(pattern)) check(member, value[name], memory, `${at}.${name}`);
    return;
  }
  if (!same(pattern, value)) wrong(pattern === null ? 'nothing' : JSON.stringify(pattern));
}

export function fits(pattern, value, memory) {
  try {
    check(pattern, value, { ...memory });
    return true;
  } catch (error) {
    if (error instanceof Mismatch) return false;
    throw error;
  }
}

const FILLED = ['$var', '$join', '$fill', '$uuid'];

function operators(pattern, value, memory, at, wrong) {
  if (Object.keys(pattern).some((key) => FILLED.includes(key))) {
    const wanted = fill(pattern, memory);
    if (!same(wanted, value)) wrong(JSON.stringify(wanted));
    return;
  }
  const number = typeof value === 'number' ? value : NaN;
  for (const [operator, operand] of Object.entries(pattern)) {
    switch (operator) {
      case '$any':
        if (!there(value)) wrong('something');
        break;
      case '$save':
        if (!there(value)) wrong('something');
        memory[operand] = value;
        break;
      case '$ge':
        if (!(number >= fill(operand, memory))) wrong(`a number of at least ${fill(operand, memory)}`);
        break;
      case '$le':
        if (!(number <= fill(operand, memory))) wrong(`a number of at most ${fill(operand, memory)}`);
        break;
      case '$not':
        if (fits(operand, value, memory)) wrong(`anything but ${JSON.stringify(operand)}`);
        break;
      case '$one_of':
        if (!operand.some((one) => fits(one, value, memory))) wrong(`one of ${JSON.stringify(operand)}`);
        check(
          operand.find((one) => fits(one, value, memory)),
          value,
          memory,
          at,
        );
        break;
      case '$length': {
        if (typeof value !== 'string' && (typeof value !== 'object' || value === null))
          wrong('something with a length');
        const length = typeof value === 'string' ? [...value].length : Object.keys(value).length;
        check(operand, length, memory, `${at}.length`);
        break;
      }
      case '$each':
        if (!Array.isArray(value)) wrong('a list');
        value.forEach((item, n) => check(operand, item, memory, `${at}[${n}]`));
        break;
      case '$has': {
        if (!Array.isArray(value)) wrong('a list');
        const found = value.find((item) => fits(operand, item, memory));
        if (found === undefined) wrong(`a list with ${JSON.stringify(operand)}`);
        check(operand, found, memory, at);
        break;
      }
      case '$seqs': {
        const [first, last] = operand;
        const wanted = Array.from({ length: last - first + 1 }, (_, n) => first + n);
        const seqs = Array.isArray(value) ? value.map((item) => item?.seq) : undefined;
        if (JSON.stringify(seqs) !== JSON.stringify(wanted)) wrong(`the events ${first} to ${last}`);
        break;
      }
      case '$format':
        if (typeof value !== 'string' || !FORMATS[operand]?.test(value)) wrong(`a ${operand}`);
        break;
      case '$only': {
        check(operand, value, memory, at);
        const more = Object.keys(value).find((name) => there(value[name]) && !(name in operand));
        if (more !== undefined) throw new Mismatch(`${at}: no member ${more} was to come`);
        break;
      }
      default:
        throw new Error(`${at}: ${operator} is no operator`);
    }
  }
}

const FORMATS = {
  gen: /^[0-9a-f]{16}$/,
  time: /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$/,
  uuid: /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/,
};

/** A value with everything in it that is to be filled in filled in. */
export function fill(value, memory) {
  if (isOperator(value)) {
    if ('$var' in value) {
      if (!(value.$var in memory)) throw new Mismatch(`nothing was saved as ${value.$var}`);
      return 'plus' in value ? memory[value.$var] + value.plus : memory[value.$var];
    }
    if ('$join' in value) {
      const text = (part) => (typeof part === 'string' ? part : JSON.stringify(part));
      return value.$join.map((part) => text(fill(part, memory))).join('');
    }
    if ('$fill' in value) return 'x'.repeat(value.$fill);
    if ('$uuid' in value) return (memory[`uuid ${value.$uuid}`] ??= crypto.randomUUID());
    throw new Error(`${JSON.stringify(value)} cannot be sent`);
  }
  if (Array.isArray(value)) return value.map((item) => fill(item, memory));
  if (!isObject(value)) return value;
  return Object.fromEntries(Object.entries(value).map(([name, member]) => [name, fill(member, memory)]));
}
