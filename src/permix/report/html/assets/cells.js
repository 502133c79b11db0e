// Reads cells: unpacks the compressed data in the page, and loads transcripts from the files next to it.
// The file cells/KEY-I-J.js holds the tile in tile row I and tile column J of the sheet KEY; it calls permix.cells with its content.
(() => {
  "use strict";
  const permix = (globalThis.permix ??= {});
  const MAX_TILES = 24; // kept in memory
  const NO_SCORE = 255, NOT_ASKED = 254, RIGHT = 240;
  const waiting = new Map(), tiles = new Map(), sheets = new Map(), grids = new Map();

  /** Returns a Promise of the bytes in a base64 text of gzip. */
  permix.unpack = async (packed) => {
    const bytes = Uint8Array.from(atob(packed), (one) => one.charCodeAt(0));
    const unzipped = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(unzipped).arrayBuffer());
  };

  const unpackJson = async (packed) => JSON.parse(new TextDecoder().decode(await permix.unpack(packed)));

  const once = (memory, key, make) => {
    if (!memory.has(key)) memory.set(key, make());
    return memory.get(key);
  };

  /**
   * Returns a Promise of the sheet of a model's run of one kind, or of null if there is no such run.
   * `columns(row)`: the question ids of a row. `find(persona, question)`: {row, column} or null.
   */
  permix.sheet = (label, kind = "stability") => {
    const packed = permix.data.sheets.find((one) => one.label === label && one.kind === kind);
    return packed ? once(sheets, packed.key, () => openSheet(packed)) : Promise.resolve(null);
  };

  async function openSheet(packed) {
    const questions = await unpackJson(packed.questions);
    const columns = Array.isArray(questions[0]) ? (row) => questions[row] : () => questions;
    const rows = new Map(packed.personas.map((persona, row) => [persona, row]));
    const find = (persona, question) => {
      const row = rows.get(persona);
      const column = row === undefined ? -1 : columns(row).indexOf(question);
      return column < 0 ? null : { row, column };
    };
    return { ...packed, columns, find };
  }

  /**
   * Returns a Promise of a model's grid. `value(row, column)`: the mean score, 0 to 1; null without a score; undefined if it was
   * not asked. Row 0 is the baseline. `rows` and `columns` are in display order: best persona and easiest question first.
   * Questions of later rounds, which only some personas were asked, come last.
   */
  permix.grid = (label) => once(grids, label, () => openGrid(permix.data.grids[label]));

  async function openGrid(packed) {
    const { label } = permix.data.sheets[packed.sheet];
    const sheet = await permix.sheet(label);
    const [mean, baseline] = await Promise.all([permix.unpack(packed.mean), permix.unpack(packed.baseline)]);
    const P = sheet.personas.length - 1, Q = baseline.length;
    const value = (row, column) => {
      const byte = row === 0 ? baseline[column] : mean[(row - 1) * Q + column];
      return byte === NOT_ASKED ? undefined : byte === NO_SCORE ? null : byte / RIGHT;
    };
    const rowMeans = Array.from({ length: P + 1 }, (_, row) => meanOf(packed.opening, (column) => value(row, column)));
    const columnMeans = Array.from({ length: Q }, (_, column) => meanOf(P, (row) => value(row + 1, column)));
    const rows = [0, ...sorted(P, (row) => -rowMeans[row + 1]).map((row) => row + 1)];
    const later = (column) => (column >= packed.opening ? 2 : 0);
    return { sheet, P, Q, value, rows, columns: sorted(Q, (column) => later(column) - columnMeans[column]) };
  }

  /** Returns the mean of the scores; -1, which sorts last, if there is none. */
  function meanOf(count, value) {
    let sum = 0, scored = 0;
    for (let index = 0; index < count; index++) {
      const score = value(index);
      if (score === null || score === undefined) continue;
      sum += score;
      scored++;
    }
    return scored ? sum / scored : -1;
  }

  const sorted = (count, by) => Array.from({ length: count }, (_, place) => place).sort((a, b) => by(a) - by(b) || a - b);

  /** Returns the name of the tile with this row and column of a sheet. */
  permix.tileOf = ({ key, tile: [rows, columns] }, { row, column }) =>
    `${key}-${Math.floor(row / rows)}-${Math.floor(column / columns)}`;

  /** Returns a Promise of the recorded cells at {row, column}, by template, context and sample. An Error's message explains why loading failed. */
  permix.cellsAt = async (sheet, place) => {
    const name = permix.tileOf(sheet, place);
    const { stamp, texts, cells } = await tile(name);
    if (stamp !== sheet.stamp) throw new Error(`${file(name)} belongs to another report. ${REMEDY}`);
    const persona = sheet.personas[place.row], question = sheet.columns(place.row)[place.column];
    return cells
      .filter((cell) => cell.persona === persona && cell.question === question)
      .map((cell) => ({ ...cell, messages: cell.messages.map(([role, text]) => [role, texts[text]]) }));
  };

  const REMEDY = "Transcripts are in the folder “cells” next to this page: keep both together, or build the report again.";
  const file = (name) => `cells/${name}.js`;

  function tile(name) {
    const loaded = tiles.get(name) ?? load(name);
    tiles.delete(name);
    tiles.set(name, loaded); // a Map keeps the order of insertion, so the oldest tile is first
    if (tiles.size > MAX_TILES) tiles.delete(tiles.keys().next().value);
    loaded.catch(() => tiles.delete(name));
    return loaded;
  }

  function load(name) {
    return new Promise((resolve, reject) => {
      const script = document.createElement("script");
      const end = (why) => {
        script.remove();
        if (waiting.delete(name)) reject(new Error(`${file(name)} ${why}. ${REMEDY}`));
      };
      waiting.set(name, { resolve, reject });
      script.addEventListener("error", () => end("could not be loaded"));
      script.addEventListener("load", () => end("does not contain the tile of its name"));
      script.src = file(name);
      document.head.append(script);
    });
  }

  /** Called by the file of a tile. */
  permix.cells = (name, packed) => {
    const request = waiting.get(name);
    waiting.delete(name);
    if (request) unpackJson(packed).then(request.resolve, () => request.reject(new Error(`${file(name)} is damaged. ${REMEDY}`)));
  };
})();
