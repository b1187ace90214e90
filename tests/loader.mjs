// A loader of vitrify/1 in JavaScript, written by docs/artifact.md alone and without a package (Node 20 or later).
//
//   node loader.mjs FILE --base http://127.0.0.1:8000/v1 [--model NAME] [--key KEY] < inputs.jsonl
//
// Reads a sealed artifact, runs it on each line of inputs and prints {"outputs": ...} or {"error": ...} for each. A file
// that it refuses is a sentence on stderr and exit code 2.

import { createHash } from "node:crypto";
import fs from "node:fs";
import { fileURLToPath } from "node:url";

class Refused extends Error {}
class Unreadable extends Error {}

// Numbers keep what JSON's own parser loses: 1.0 isn't 1, and integers may be large.
class Int {
  constructor(big) { this.big = big; }
}
class Float {
  constructor(number) { this.number = number; }
}
class Member {
  constructor(value) { this.value = value; }
}
class DateText {
  constructor(text) { this.text = text; }
}
class Model {
  constructor(fields) { this.fields = fields; }
}
class Prediction {
  constructor(fields) { this.fields = fields; }
}

// JSON --------------------------------------------------------------------------------------------------------------

const SPACE = /[ \t\n\r]*/y;
const NUMBER = /-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?/y;

function parseJson(text, { depth = 150, values = 500000 } = {}) {
  let at = 0, count = 0;
  const match = (regex) => {
    regex.lastIndex = at;
    const found = regex.exec(text);
    if (found) at += found[0].length;
    return found;
  };
  const skip = () => match(SPACE);
  const fail = (what) => { throw new SyntaxError(`${what} at character ${at}`); };
  // By hand: a regular expression would overflow its stack at a very long text.
  const string = () => {
    let end = at + 1;
    while (end < text.length && text[end] !== '"') {
      if (text.charCodeAt(end) < 32) fail("a control character in a text");
      end += text[end] === "\\" ? 2 : 1;
    }
    if (end >= text.length) fail("a text without an end");
    const raw = text.slice(at, end + 1);
    at = end + 1;
    try { return JSON.parse(raw); } catch { return fail("a wrong escape"); }
  };
  const counted = () => { if (++count > values) fail(`more than ${values} values`); };
  const value = (level) => {
    skip();
    const char = text[at];
    if (char === "{" || char === "[") {
      if (level >= depth) fail(`more than ${depth} levels`);
      counted();
      at++;
      return char === "{" ? object(level + 1) : array(level + 1);
    }
    if (char === '"') return string();
    for (const [word, meaning] of [["true", true], ["false", false], ["null", null]]) {
      if (text.startsWith(word, at)) { at += word.length; return meaning; }
    }
    const found = match(NUMBER);
    if (!found) fail("no JSON value");
    if (found[1] === undefined && found[2] === undefined) {
      if (found[0].length > 400) fail("a number that is too long");
      return new Int(BigInt(found[0]));
    }
    return new Float(Number(found[0]));
  };
  const object = (level) => {
    const table = new Map();
    skip();
    if (text[at] === "}") { at++; return table; }
    for (;;) {
      skip();
      if (text[at] !== '"') fail("no key");
      const key = string();
      if (table.has(key)) fail(`the key ${JSON.stringify(key)} stands twice`);
      skip();
      if (text[at] !== ":") fail("no colon");
      at++;
      table.set(key, value(level));
      skip();
      if (text[at] === "}") { at++; return table; }
      if (text[at] !== ",") fail("no comma");
      counted();
      at++;
    }
  };
  const array = (level) => {
    const items = [];
    skip();
    if (text[at] === "]") { at++; return items; }
    for (;;) {
      items.push(value(level));
      skip();
      if (text[at] === "]") { at++; return items; }
      if (text[at] !== ",") fail("no comma");
      counted();
      at++;
    }
  };
  const found = value(0);
  skip();
  if (at !== text.length) fail("something after the value");
  return found;
}

function canonical(value) {
  if (value === null || typeof value === "boolean") return String(value);
  if (typeof value === "string") {
    if (!value.isWellFormed()) throw new Refused("a text has a lone surrogate");
    return JSON.stringify(value);
  }
  if (value instanceof Int) {
    const { big } = value, text = big.toString();
    const exact = big <= 2n ** 53n && big >= -(2n ** 53n);
    if (!exact && String(Number(text)) !== text) throw new Refused(`the integer ${text.slice(0, 40)} fits no double`);
    return text;
  }
  if (value instanceof Float) {
    if (!Number.isFinite(value.number)) throw new Refused("a number is infinite");
    return String(value.number === 0 ? 0 : value.number);
  }
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  // JavaScript compares texts by UTF-16 code units, as RFC 8785 does.
  const keys = [...value.keys()].sort((a, b) => (a < b ? -1 : 1));
  return `{${keys.map((key) => `${canonical(key)}:${canonical(value.get(key))}`).join(",")}}`;
}

const digest = (value) => createHash("sha256").update(canonical(value), "utf8").digest("hex");

// Python's own spelling of numbers, in prompts and in JSON inside prompts.
function floatText(number) {
  if (Number.isInteger(number) && Math.abs(number) < 1e16) return Object.is(number, -0) ? "-0.0" : `${number}.0`;
  const [digits, exponent] = number.toExponential().split("e");
  const power = Number(exponent);
  if (power >= -4 && power < 16) {
    if (power >= 0) return String(number);
    const sign = number < 0 ? "-" : "";
    return `${sign}0.${"0".repeat(-power - 1)}${digits.replace(/[-.]/g, "")}`;
  }
  return `${digits}e${power < 0 ? "-" : "+"}${String(Math.abs(power)).padStart(2, "0")}`;
}

function toJson(value) {
  if (value === null || typeof value === "boolean") return String(value);
  if (typeof value === "string") return JSON.stringify(value);
  if (value instanceof Int) return value.big.toString();
  if (value instanceof Float) return floatText(value.number);
  if (value instanceof Member) return toJson(value.value);
  if (value instanceof DateText) return JSON.stringify(value.text);
  if (value instanceof Model || value instanceof Prediction) return toJson(value.fields);
  if (Array.isArray(value)) return `[${value.map(toJson).join(", ")}]`;
  return `{${[...value].map(([key, item]) => `${JSON.stringify(key)}: ${toJson(item)}`).join(", ")}}`;
}

// Shapes: every key required, every other refused --------------------------------------------------------------------

const isMap = (value) => value instanceof Map;
const refuse = (where, what) => { throw new Refused(`${where} is not ${what}`); };
const check = (what, test) => (value, where) => (test(value) ? value : refuse(where, what));
const text = check("text", (value) => typeof value === "string");
const NAME = /^[^\u0000-\u001f\u007f-\u009f\u2028-\u202e\u2066-\u2069]*$/;
const name = check("a name", (value) => typeof value === "string" && [...value].length <= 1000 && NAME.test(value));
const sha = check("a sha256", (value) => typeof value === "string" && /^[0-9a-f]{64}$/.test(value));
const bool = check("a boolean", (value) => typeof value === "boolean");
const number = check("a number", (value) => value instanceof Int || value instanceof Float);
const int = check("an integer", (value) => value instanceof Int || (value instanceof Float && Number.isInteger(value.number)));
const oneOf = (...known) => check(`one of ${known}`, (value) => known.includes(value));
const opt = (shape) => (value, where) => (value === null ? null : shape(value, where));
const list = (shape) => (value, where) =>
  Array.isArray(value) ? value.map((item, index) => shape(item, `${where}[${index}]`)) : refuse(where, "a list");
const some = (shape) => (value, where) => (Array.isArray(value) && value.length ? list(shape)(value, where) : refuse(where, "a list with a value"));
const pairOf = (first, second) => (value, where) =>
  Array.isArray(value) && value.length === 2
    ? [first(value[0], `${where}[0]`), second(value[1], `${where}[1]`)] : refuse(where, "a pair");
const table = (shape) => (value, where) =>
  isMap(value) ? new Map([...value].map(([key, item]) => [key, shape(item, `${where}.${key}`)])) : refuse(where, "an object");
const object = (shapes) => (value, where) => {
  if (!isMap(value)) return refuse(where, "an object");
  for (const key of value.keys()) if (!Object.hasOwn(shapes, key)) throw new Refused(`${where} has an unknown key ${JSON.stringify(key)}`);
  const found = {};
  for (const [key, shape] of Object.entries(shapes)) {
    if (!value.has(key)) throw new Refused(`${where} lacks ${key}`);
    found[key] = shape(value.get(key), `${where}.${key}`);
  }
  return found;
};
const own = check("a name without two underscores in front", (value) => typeof value === "string" && !value.startsWith("__"));
const raw = (value) => value;
const once = (names, where) => {
  if (new Set(names).size !== names.length) throw new Refused(`${where} has a name twice`);
};

function exact(value, where) {
  if (Array.isArray(value)) return value.map((item) => exact(item, where));
  if (!isMap(value)) return value;
  const keys = [...value.keys()];
  if (!keys.some((key) => key.startsWith("$"))) return new Map([...value].map(([key, item]) => [key, exact(item, where)]));
  if (keys.length === 1 && keys[0] === "$object") {
    const pairs = list(pairOf(text, exact))(value.get("$object"), where);
    once(pairs.map(([key]) => key), where);
    return new Map(pairs);
  }
  if (keys.length === 1 && keys[0] === "$number") {
    let found = null;
    try { found = parseJson(text(value.get("$number"), where)); } catch (error) { if (error instanceof Refused) throw error; }
    if (found instanceof Int || (found instanceof Float && Number.isFinite(found.number))) return found;
  }
  throw new Refused(`${where} has a mark that is none`);
}

const jsonText = (value, where) => {
  try { return parseJson(text(value, where), { depth: 200, values: 100000 }); } catch { return refuse(where, "the text of a JSON value"); }
};

// Types: [check a JSON value, or a text, and return the typed value] -----------------------------------------------

const LARGEST_TYPE = 2000;
const same = (left, right) =>
  left === right || (left instanceof Int && right instanceof Int && left.big === right.big);
const atom = check("a text, integer, boolean or null", (value) => value === null || ["string", "boolean"].includes(typeof value) || value instanceof Int);
const unreadable = (what) => { throw new Unreadable(`the value is not ${what}`); };

const SCALARS = {
  str: (value) => (typeof value === "string" ? value : unreadable("text")),
  none: (value) => (value === null ? null : unreadable("null")),
  any: (value) => value,
  list: (value) => (Array.isArray(value) ? value : unreadable("a list")),
  tuple: (value) => (Array.isArray(value) ? value : unreadable("a list")),
  dict: (value) => (isMap(value) ? value : unreadable("an object")),
  int(value) {
    if (value instanceof Int) return value;
    if (value instanceof Float && Number.isInteger(value.number)) return new Int(BigInt(value.number));
    if (typeof value === "string" && /^\s*[+-]?[0-9]{1,400}\s*$/.test(value)) return new Int(BigInt(value.trim().replace(/^\+/, "")));
    return unreadable("an integer");
  },
  float(value) {
    if (value instanceof Float) return value;
    if (value instanceof Int) return new Float(Number(value.big));
    if (typeof value === "string" && value.trim() !== "" && Number.isFinite(Number(value))) return new Float(Number(value));
    return unreadable("a number");
  },
  bool(value) {
    if (typeof value === "boolean") return value;
    const word = value instanceof Int ? value.big.toString() : typeof value === "string" ? value.toLowerCase() : "";
    if (["1", "true", "yes", "on", "t", "y"].includes(word)) return true;
    if (["0", "false", "no", "off", "f", "n"].includes(word)) return false;
    return unreadable("a boolean");
  },
  date(value) {
    if (typeof value === "string" && /^[0-9]{4}-[0-9]{2}-[0-9]{2}$/.test(value)) {
      const read = new Date(`${value}T00:00:00Z`);
      if (!Number.isNaN(read.getTime()) && read.toISOString().startsWith(value)) return new DateText(value);
    }
    return unreadable("a date");
  },
};
const EXACTLY = {
  str: (value) => typeof value === "string", bool: (value) => typeof value === "boolean", int: (value) => value instanceof Int,
  float: (value) => value instanceof Float, none: (value) => value === null,
};
const BOUNDS = {
  ge: (value, bound) => value >= bound, gt: (value, bound) => value > bound,
  le: (value, bound) => value <= bound, lt: (value, bound) => value < bound,
};
const SAYS = ["title", "description", "examples"]; // options that say something and hold nothing

function typeOf(data, where, seen = { count: 0 }, level = 0) {
  if (++seen.count > LARGEST_TYPE || level > 60) throw new Refused(`${where} is too large a type`);
  const inner = (value, at) => typeOf(value, at, seen, level + 1);
  if (typeof data === "string") {
    if (!Object.hasOwn(SCALARS, data)) throw new Refused(`${where}: this loader doesn't hold the type ${data}`);
    return { kind: data, read: SCALARS[data], exactly: EXACTLY[data] ?? (() => false) };
  }
  if (!isMap(data)) refuse(where, "a type");
  const kind = { kind: raw };
  switch (data.get("kind")) {
    case "literal": {
      const { values } = object({ ...kind, values: some(atom) })(data, where);
      const find = (value) => values.some((known) => same(known, value));
      return { kind: "literal", values, exactly: find, read: (value) => (find(value) ? value : unreadable("one of the values")) };
    }
    case "enum": {
      const { members } = object({ ...kind, name: text, doc: opt(text), base: oneOf("Enum", "str", "int", "StrEnum", "IntEnum"), members: some(pairOf(own, atom)) })(data, where);
      const read = (value, byName = false) => {
        const found = members.find(([, known]) => same(known, value)) ?? (byName ? members.find(([known]) => known === value) : undefined);
        return found ? new Member(found[1]) : unreadable("a member");
      };
      return { kind: "enum", read, exactly: () => false };
    }
    case "list": {
      const items = object({ ...kind, items: inner })(data, where).items;
      return { kind: "list", exactly: () => false, read: (value) => SCALARS.list(value).map((item) => items.read(item)) };
    }
    case "dict": {
      const { keys, values } = object({ ...kind, keys: inner, values: inner })(data, where);
      const read = (value) => new Map([...SCALARS.dict(value)].map(([key, item]) => [keys.read(key), values.read(item)]));
      if (keys.kind !== "str") throw new Refused(`${where}: this loader holds dictionaries with text as keys`);
      return { kind: "dict", exactly: () => false, read };
    }
    case "tuple": {
      const { items, variadic } = object({ ...kind, items: list(inner), variadic: bool })(data, where);
      const read = (value) => {
        if (!variadic && SCALARS.list(value).length !== items.length) unreadable(`a list of ${items.length}`);
        return SCALARS.list(value).map((item, index) => items[variadic ? 0 : index].read(item));
      };
      return { kind: "tuple", exactly: () => false, read };
    }
    case "union": {
      const { options } = object({ ...kind, options: list(inner) })(data, where);
      const read = (value) => {
        const sure = options.find((option) => option.exactly(value));
        if (sure) return sure.read(value);
        for (const option of options) {
          try { return option.read(value); } catch (error) { if (!(error instanceof Unreadable)) throw error; }
        }
        return unreadable("one of the options");
      };
      const has = (wanted) => options.some((option) => option.kind === wanted);
      return { kind: "union", none: options.some((option) => option.kind === "none" || option.none), asText: has("str") && has("none"), exactly: (value) => options.some((option) => option.exactly(value)), read };
    }
    case "annotated": {
      const bounds = [];
      const meta = object({ form: text, options: table(jsonText) });
      const { type, metadata } = object({ ...kind, type: inner, metadata: list(meta) })(data, where);
      for (const { options } of metadata) {
        for (const [option, value] of options) {
          if (SAYS.includes(option)) continue;
          if (!Object.hasOwn(BOUNDS, option)) throw new Refused(`${where}: this loader doesn't hold the constraint ${option}`);
          bounds.push([BOUNDS[option], Number(toJson(value))]);
        }
      }
      const read = (value) => {
        const found = type.read(value);
        const size = found instanceof Int ? Number(found.big) : found instanceof Float ? found.number : NaN;
        return bounds.every(([holds, bound]) => holds(size, bound)) ? found : unreadable("within its bounds");
      };
      return { ...type, kind: "annotated", none: type.none || type.kind === "none", read };
    }
    case "model": return modelOf(data, where, kind, inner);
    default: throw new Refused(`${where}: this loader doesn't hold types of the kind ${JSON.stringify(data.get("kind"))}`);
  }
}

function modelOf(data, where, kind, inner) {
  const field = object({ name: own, type: inner, default: defaultOf, options: table(jsonText) });
  const { config, fields } = object({ ...kind, name: text, doc: opt(text), config: table(jsonText), fields: list(field) })(data, where);
  if (config.size || fields.some(({ options }) => [...options.keys()].some((key) => !SAYS.includes(key)))) {
    throw new Refused(`${where}: this loader holds models without settings`);
  }
  const read = (value) => {
    const given = SCALARS.dict(value);
    return new Model(new Map(fields.map(({ name, type, default: spare }) => {
      if (given.has(name)) return [name, type.read(given.get(name))];
      return [name, spare === null ? unreadable(`an object with ${name}`) : spare()];
    })));
  };
  return { kind: "model", exactly: () => false, read };
}

const FACTORIES = { list: () => [], dict: () => new Map(), str: () => "", int: () => new Int(0n), float: () => new Float(0), bool: () => false };

function defaultOf(value, where) {
  if (value === null) return null;
  if (isMap(value) && value.size === 1) {
    const [[kind, said]] = value;
    if (kind === "value") { jsonText(said, where); return () => jsonText(said, where); }
    if (kind === "factory" && Object.hasOwn(FACTORIES, said)) return FACTORIES[said];
    if (kind === "member") throw new Refused(`${where}: this loader doesn't hold members as defaults`);
  }
  return refuse(where, "a default");
}

// Replies -------------------------------------------------------------------------------------------------------------

const LINE = /\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]/;
// White space as the page means it; trim() takes U+FEFF for one, and not U+001C to U+001F.
const EDGES = /^[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+|[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+$/g;
const strip = (said) => said.replace(EDGES, "");
const HEADER = /^\[\[ ## ([\p{L}\p{N}_]+) ## \]\]/u;

function sectionsOf(reply) {
  const found = new Map();
  let current = [];
  for (const line of reply.split(LINE)) {
    const header = HEADER.exec(strip(line));
    if (!header) { current.push(line); continue; }
    const rest = strip(line.slice(header[0].length));
    current = rest ? [rest] : [];
    if (!found.has(header[1])) found.set(header[1], current);
  }
  return new Map([...found].map(([key, lines]) => [key, strip(lines.join("\n"))]));
}

function objectOf(reply) {
  try {
    const whole = parseJson(reply);
    if (isMap(whole)) return whole;
  } catch { /* there may be one inside */ }
  const opened = [];
  let start = reply.length, end = 0;
  for (const brace of reply.matchAll(/[{}]/g)) {
    if (brace[0] === "{") opened.push(brace.index);
    else if (opened.length) {
      const left = opened.pop();
      if (left < start) [start, end] = [left, brace.index + 1];
    }
  }
  try {
    const inner = parseJson(reply.slice(start, end));
    if (isMap(inner)) return inner;
  } catch { /* said below */ }
  return unreadable("a JSON object");
}

function unwrapped(said) {
  let found = strip(said);
  if (/^(Literal|str)\[/.test(found) && found.endsWith("]")) found = found.slice(found.indexOf("[") + 1, -1);
  if (found.length > 1 && found[0] === found.at(-1) && "\"'".includes(found[0])) found = found.slice(1, -1);
  return found;
}

function readValue(type, value) {
  if (type.kind === "str") return typeof value === "string" ? value : isMap(value) || Array.isArray(value) ? unreadable("text") : plainText(value);
  if (type.kind === "enum") return type.read(value, true);
  if (type.kind === "literal") {
    if (type.exactly(value)) return value;
    if (typeof value === "string") {
      value = unwrapped(value);
      if (type.exactly(value)) return value;
    }
  }
  if (typeof value !== "string" || type.asText) return type.read(value);
  let read = value;
  try { read = parseJson(value); } catch { /* it stays text */ }
  return type.read(read);
}

function readReply(outputs, reply, format) {
  if (!reply) unreadable("there");
  const found = format === "chat" ? sectionsOf(reply) : objectOf(reply);
  return new Prediction(new Map(outputs.map(({ name, type, default: spare }) => {
    if (found.has(name)) return [name, readValue(type, found.get(name))];
    if (spare !== null) return [name, spare()];
    return [name, type.kind === "none" || type.none ? null : unreadable(`there: ${name}`)];
  })));
}

// Prompts -------------------------------------------------------------------------------------------------------------

const MARKER = "<<CUSTOM-TYPE-START-IDENTIFIER>>";

function plainText(value) {
  if (typeof value === "string") return value;
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (value instanceof Member) return plainText(value.value);
  if (value instanceof DateText) return value.text;
  return toJson(value);
}

function quoted(item) {
  if (typeof item !== "string") throw new Error("`a list in a text field holds texts`");
  return /[\n«»]/.test(item) ? `«««\n    ${item.replaceAll("\n", "\n    ")}\n»»»` : `«${item}»`;
}

function valueText(value, isText) {
  if (isText && Array.isArray(value)) {
    if (value.length < 2) return value.length ? quoted(value[0]) : "N/A";
    return value.map((item, index) => `[${index + 1}] ${quoted(item)}`).join("\n");
  }
  return plainText(value);
}

function render(plan, inputs) {
  const parts = [];
  for (const hole of plan.holes) {
    const shown = inputs.has(hole.name) ? valueText(inputs.get(hole.name), hole.text) : hole.default;
    if (shown !== null) parts.push(`[[ ## ${hole.name} ## ]]\n${shown}`);
  }
  const content = [...parts, plan.requirements].join("\n\n");
  if (content.includes(MARKER) || !content.isWellFormed()) throw new Error("`an input has no marker and no lone surrogate`");
  return [...plan.messages, { role: "user", content }];
}

// The file ------------------------------------------------------------------------------------------------------------

const DECODING = ["temperature", "max_tokens", "max_completion_tokens", "top_p", "stop", "seed", "presence_penalty",
  "frequency_penalty", "logit_bias", "reasoning_effort", "top_k", "min_p", "n", "rollout_id"];
const decoding = (value, where) => {
  for (const key of table(raw)(value, where).keys()) if (!DECODING.includes(key)) throw new Refused(`${where}: ${key} is no sampling parameter`);
  return value;
};
const message = object({ role: oneOf("system", "user", "assistant"), content: text });
const schemaText = (value, where) => (isMap(jsonText(value, where)) ? value : refuse(where, "the text of an object"));
const plan = object({ format: oneOf("chat", "json"), messages: list(message), holes: list(object({ name: text, text: bool, default: opt(text) })), requirements: text, response_schema: opt(schemaText) });
const field = object({ name: text, role: oneOf("input", "output"), type: raw, description: text, constraints: text, default: raw });
const signature = object({ name: text, instruction: text, fields: list(field) });
const canary = object({ path: name, inputs: table(exact), messages: list(message), sha256: sha });
const predictor = object({
  path: name, aliases: list(name), signature: opt(signature), reason: opt(text), instruction: text, demos: list(table(exact)),
  format: oneOf("chat", "json"), decoding, plan: opt(plan), second_plan: opt(plan), methods: table(text), rows: list(int),
});
const program = (value, where) => {
  const origin = { import_path: opt(name), source_sha256: opt(sha) };
  if (isMap(value) && value.get("kind") === "class") return object({ kind: raw, ...origin, reason: text })(value, where);
  return object({ kind: oneOf("sealed"), ...origin, flow: raw })(value, where);
};
const modelName = (value, where) => (name(value, where).includes("://") ? refuse(where, "a name without an address") : value);
const ARTIFACT = object({
  format: oneOf("vitrify/1"), name, program, inputs: list(object({ name, required: bool })), predictors: list(predictor),
  model: object({ name: modelName, decoding, capabilities: object({ response_format: bool, response_schema: bool, function_calling: bool, reasoning: bool }), adapter: name }),
  evidence: object({ improved: bool, baseline: number, compiled: number, difference: number, interval: pairOf(number, number), level: number, p_value: number, n: int, method: text, sealed: bool, certified: bool }),
  selection: object({ shipped: oneOf("compiled", "baseline"), reason: text, probability: number, estimate: number, interval: pairOf(number, number), trials: int, evaluations: int, slots: table(int) }),
  provenance: object({ versions: table(text), seed: int, strategy: text, metric: text, metric_sha256: opt(sha), data_sha256: sha, rows: table(int), calls: int, prompt_tokens: int, completion_tokens: int, dollars: opt(number), malformed: int, reparsed: int }),
  canaries: list(canary), notes: list(text), reproducible: bool, reproducible_reason: opt(text), sha256: sha,
});

function readBytes(path) {
  const handle = fs.openSync(path, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK);
  try {
    const status = fs.fstatSync(handle);
    if (!status.isFile() || status.size > 16 * 1024 * 1024) throw new Refused("`an artifact is a file of at most 16 MiB`");
    return fs.readFileSync(handle);
  } finally { fs.closeSync(handle); }
}

function readArtifact(bytes) {
  let value;
  try { value = parseJson(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes)); } catch (error) { throw new Refused(`no valid JSON: ${error.message}`); }
  if (!isMap(value) || value.get("format") !== "vitrify/1") throw new Refused("`the format is vitrify/1`");
  const content = new Map([...value].filter(([key]) => key !== "sha256"));
  if (digest(content) !== value.get("sha256")) throw new Refused("it was changed after it was written: `sha256` is of another content");
  const artifact = ARTIFACT(value, "artifact");
  if (artifact.program.kind !== "sealed") throw new Refused(`it needs its class: ${artifact.program.reason}`);
  once(artifact.inputs.map((item) => item.name), "inputs");
  once(artifact.predictors.flatMap((item) => [item.path, ...item.aliases]), "predictors");
  const predictors = new Map(artifact.predictors.map((item) => [item.path, predictorOf(item)]));
  const flow = flowOf(artifact.program.flow, predictors, "flow");
  const known = (items) => items.map((item) => `${item.name}/${item.required}`).sort().join();
  if (known(flow.parameters) !== known(artifact.inputs)) throw new Refused("the flow takes other inputs than the artifact names");
  flowSize(flow);
  for (const item of artifact.canaries) checkCanary(item, predictors);
  return { artifact, predictors, flow };
}

function predictorOf(record) {
  const { path, plan: main, second_plan: second } = record;
  if (!main && second) throw new Refused(`${path} has a second plan only`);
  if (!main) return null;
  if (!record.signature) throw new Refused(`${path} has a plan without a signature`);
  const { fields } = record.signature;
  once(fields.map((item) => item.name), path);
  const inputs = fields.filter((item) => item.role === "input").map((item) => item.name);
  for (const [item, format] of [[main, record.format], [second, "json"]]) {
    if (!item) continue;
    if (item.format !== format) throw new Refused(`${path} has a plan of another format`);
    if (item.holes.map((hole) => hole.name).join("\n") !== inputs.join("\n")) throw new Refused(`${path}: the holes are not the inputs`);
  }
  const outputs = fields.filter((item) => item.role === "output").map((item) => ({
    name: item.name, type: typeOf(item.type, `${path}.${item.name}`), default: defaultOf(item.default, `${path}.${item.name}`),
  }));
  return { path, plans: second ? [main, second] : [main], outputs, decoding: record.decoding };
}

function checkCanary(item, predictors) {
  const found = predictors.get(item.path);
  if (found === undefined) throw new Refused(`a canary names ${JSON.stringify(item.path)}, which is no predictor`);
  if (found === null) return;
  const [main] = found.plans;
  const messages = render(main, item.inputs);
  const tail = messages.slice(main.messages.length);
  const written = messages.map(({ role, content }) => new Map([["role", role], ["content", content]]));
  if (JSON.stringify(tail) !== JSON.stringify(item.messages) || digest(written) !== item.sha256) {
    throw new Refused(`${item.path} renders other messages than when it was compiled:\n- ${JSON.stringify(item.messages)}\n+ ${JSON.stringify(tail)}`);
  }
}

// The flow ------------------------------------------------------------------------------------------------------------

function flowOf(data, predictors, where) {
  const parameter = object({ name: text, required: bool, default: exact });
  const found = object({ parameters: list(parameter), steps: list(object({ let: text, value: raw })), returns: raw })(data, where);
  const scope = new Set(found.parameters.map((item) => item.name));
  once([...found.parameters.map((item) => item.name), ...found.steps.map((item) => item.let)], where);
  const steps = found.steps.map((step) => {
    const value = expressionOf(step.value, scope, predictors, where);
    scope.add(step.let);
    return [step.let, value];
  });
  return { parameters: found.parameters, steps, returns: expressionOf(found.returns, scope, predictors, where) };
}

function expressionOf(data, scope, predictors, where) {
  if (!isMap(data) || data.size !== 1) refuse(where, "an expression with one key");
  const [[kind, body]] = data;
  const inner = (value) => expressionOf(value, scope, predictors, where);
  const named = (value) => list(pairOf(text, inner))(value, where);
  const unique = (pairs) => { once(pairs.map(([key]) => key), where); return pairs; };
  switch (kind) {
    case "name": return scope.has(body) ? [kind, body] : refuse(where, "a name that is bound");
    case "const": return [kind, exact(body, where)];
    case "field": return [kind, pairOf(inner, text)(body, where)];
    case "item": return [kind, pairOf(inner, (key, at) => (typeof key === "string" || key instanceof Int ? key : refuse(at, "an index or key")))(body, where)];
    case "list": case "tuple": case "text": return [kind, list(inner)(body, where)];
    case "dict": return [kind, named(body)];
    case "prediction": return [kind, unique(named(body))];
    case "call": {
      const { path, inputs } = object({ path: text, inputs: named })(body, where);
      if (!predictors.get(path)) throw new Refused(`the flow calls ${JSON.stringify(path)}, which has no plan`);
      return [kind, { path, inputs: unique(inputs) }];
    }
    case "flow": {
      const { flow, inputs } = object({ flow: (value) => flowOf(value, predictors, where), inputs: named })(body, where);
      return [kind, { flow, inputs: unique(inputs) }];
    }
    default: throw new Refused(`${where} has the unknown expression ${JSON.stringify(kind)}`);
  }
}

function flowSize(whole) {
  const MOST = 100000, one = { total: 1, parts: new Map() };
  let sum = 0;
  const bounded = (total) => { if (total > MOST) throw new Refused(`the flow builds more than ${MOST} parts`); return total; };
  const counted = (size) => { sum = bounded(sum + size.total); return size; };
  const constant = (value) => {
    if (Array.isArray(value)) return 1 + value.reduce((total, item) => total + constant(item), 0);
    if (isMap(value)) return 1 + [...value.values()].reduce((total, item) => total + constant(item), 0);
    return 1 + (typeof value === "string" ? Math.floor(value.length / 1000) : 0);
  };
  const sizeOf = ([kind, body], scope) => {
    if (kind === "name") return scope.get(body);
    if (kind === "const") return { total: constant(body), parts: new Map() };
    if (kind === "field" || kind === "item") {
      const owner = sizeOf(body[0], scope);
      return owner.parts.get(body[1] instanceof Int ? Number(body[1].big) : body[1]) ?? owner;
    }
    if (kind === "call" || kind === "flow") {
      const inputs = new Map(body.inputs.map(([key, item]) => [key, counted(sizeOf(item, scope))]));
      return kind === "call" ? one : flowOne(body.flow, inputs);
    }
    const parts = new Map(kind === "dict" || kind === "prediction"
      ? body.map(([key, item]) => [key, sizeOf(item, scope)]) : body.map((item, index) => [index, sizeOf(item, scope)]));
    const total = bounded([...parts.values()].reduce((before, part) => before + part.total, 1));
    return { total, parts: kind === "text" ? new Map() : parts };
  };
  const flowOne = (flow, given) => {
    const scope = new Map(flow.parameters.map((item) => [item.name, given.get(item.name) ?? one]));
    for (const [name, value] of flow.steps) scope.set(name, counted(sizeOf(value, scope)));
    return counted(sizeOf(flow.returns, scope));
  };
  flowOne(whole, new Map());
}

async function runFlow(flow, inputs, ask) {
  const scope = new Map();
  for (const item of flow.parameters) {
    if (!inputs.has(item.name) && item.required) throw new Error(`the input ${item.name} is missing`);
    scope.set(item.name, inputs.has(item.name) ? inputs.get(item.name) : item.default);
  }
  for (const key of inputs.keys()) if (!scope.has(key)) throw new Error(`the input ${key} is none of the program's`);
  const evaluate = async ([kind, body]) => {
    const all = async (pairs) => {
      const found = new Map();
      for (const [key, item] of pairs) found.set(key, await evaluate(item));
      return found;
    };
    if (kind === "name") return scope.get(body);
    if (kind === "const") return body;
    if (kind === "field" || kind === "item") return partOf(await evaluate(body[0]), body[1]);
    if (kind === "dict") return all(body);
    if (kind === "prediction") return new Prediction(await all(body));
    if (kind === "call") return ask(body.path, await all(body.inputs));
    if (kind === "flow") return runFlow(body.flow, await all(body.inputs), ask);
    const items = [];
    for (const item of body) items.push(await evaluate(item));
    return kind === "text" ? joined(items) : items;
  };
  for (const [name, value] of flow.steps) scope.set(name, await evaluate(value));
  const found = await evaluate(flow.returns);
  if (!(found instanceof Prediction)) throw new Error("`a flow returns a prediction`");
  return found;
}

function joined(items) {
  if (items.some((item) => Array.isArray(item) || isMap(item) || item instanceof Model || item instanceof Member)) throw new Error("`a text is made of texts and numbers`");
  const found = items.map(plainText).join("");
  if ([...found].length > 10_000_000) throw new Error("`a text has at most 10000000 characters`");
  return found;
}

function partOf(owner, key) {
  const fields = owner instanceof Prediction || owner instanceof Model ? owner.fields : owner;
  if (isMap(fields) && typeof key === "string" && fields.has(key)) return fields.get(key);
  if (Array.isArray(owner) && key instanceof Int && Math.abs(Number(key.big)) <= owner.length) {
    const found = owner.at(Number(key.big));
    if (found !== undefined) return found;
  }
  throw new Error(`the flow reads ${toJson(key)}, which isn't there`);
}

// Asking --------------------------------------------------------------------------------------------------------------

const PREFIX = /^(openai|hosted_vllm|vllm|lm_studio|llamafile|litellm_proxy)\//;

function client({ artifact, predictors }, base, key, model) {
  const other = model !== artifact.model.name;
  const takes = other ? { response_format: false } : artifact.model.capabilities;
  const complete = async (found, plan, inputs) => {
    const params = new Map([...(other ? [] : artifact.model.decoding), ...found.decoding]);
    const fields = [["model", toJson(model.replace(PREFIX, ""))], ["messages", JSON.stringify(render(plan, inputs))]];
    for (const [key, value] of params) if (value !== null && key !== "n" && key !== "rollout_id") fields.push([key, toJson(value)]);
    if (plan.format === "json" && takes.response_format) {
      // The text of the schema as it stands: JavaScript would reorder keys that look like numbers.
      const strict = `{"type": "json_schema", "json_schema": {"name": "DSPyProgramOutputs", "schema": ${plan.response_schema}, "strict": true}}`;
      fields.push(["response_format", takes.response_schema && plan.response_schema !== null ? strict : '{"type": "json_object"}']);
    }
    const body = `{${fields.map(([key, value]) => `${JSON.stringify(key)}: ${value}`).join(", ")}}`;
    const headers = { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
    const response = await fetch(`${base}/chat/completions`, { method: "POST", headers, body });
    if (!response.ok) throw new Error(`the server says ${response.status}`);
    return (await response.json()).choices[0].message.content;
  };
  return async (path, inputs) => {
    const found = predictors.get(path);
    let problem;
    for (const plan of found.plans) {
      const reply = await complete(found, plan, inputs);
      try { return readReply(found.outputs, reply, plan.format); } catch (error) {
        if (!(error instanceof Unreadable)) throw error;
        problem = error;
      }
    }
    throw problem;
  };
}

async function main([path, ...rest]) {
  const options = Object.fromEntries(rest.flatMap((item, index) => (item.startsWith("--") ? [[item.slice(2), rest[index + 1]]] : [])));
  const loaded = readArtifact(readBytes(path));
  const ask = client(loaded, options.base, options.key, options.model ?? loaded.artifact.model.name);
  for (const line of fs.readFileSync(0, "utf8").split("\n")) {
    if (!line) continue;
    let said;
    try { said = `{"outputs": ${toJson(await runFlow(loaded.flow, parseJson(line), ask))}}`; } catch (error) {
      said = `{"error": ${JSON.stringify(error instanceof Unreadable ? "Unreadable" : error.message)}}`;
    }
    process.stdout.write(`${said}\n`);
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  main(process.argv.slice(2)).catch((error) => {
    process.stderr.write(`${error instanceof Refused ? error.message : error.stack}\n`);
    process.exitCode = 2;
  });
}

export { canonical, parseJson, toJson };
