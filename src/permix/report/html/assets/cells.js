// Where cells are found: packed parts of the payload are opened here, and transcripts are loaded from the files beside the page.
// A file cells/KEY-I-J.js holds the tile of rows I and columns J of the sheet KEY; it calls permix.cells with what it holds.
(() => {
  "use strict";
  const permix = (globalThis.permix ??= {});
  const KEPT = 24; // tiles
  const NO_SCORE = 255, NOT_ASKED = 254, RIGHT = 240;
  const waiting = new Map(), tiles = new Map(), sheets = new Map(), grids = new Map();

  /** base64 of gzip -> Promise of its bytes. */
  permix.unpack = async (packed) => {
    const bytes = Uint8Array.from(atob(packed), (one) => one.charCodeAt(0));
    const opened = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(opened).arrayBuffer());
  };

  const unpackJson = async (packed) => JSON.parse(new TextDecoder().decode(await permix.unpack(packed)));

  const once = (memory, key, make) => {
    if (!memory.has(key)) memory.set(key, make());
    return memory.get(key);
  };

  /**
   * The cells of a model's run of one kind, as Promise; null where it has none.
   * `columns(row)`: ids of the questions of a row; `find(persona, question)`: {row, column} or null.
   */
  permix.sheet = (label, kind = "stability") => {
    const found = permix.data.sheets.find((one) => one.label === label && one.kind === kind);
    return found ? once(sheets, found.key, () => openSheet(found)) : Promise.resolve(null);
  };

  async function openSheet(told) {
    const questions = await unpackJson(told.questions);
    const columns = Array.isArray(questions[0]) ? (row) => questions[row] : () => questions;
    const rows = new Map(told.personas.map((persona, row) => [persona, row]));
    const find = (persona, question) => {
      const row = rows.get(persona);
      const column = row === undefined ? -1 : columns(row).indexOf(question);
      return column < 0 ? null : { row, column };
    };
    return { ...told, columns, find };
  }

  /**
   * A model's grid, as Promise. `value(row, column)`: mean score from 0 to 1, null without a score, undefined where it was not
   * asked; row 0 is no persona. `rows` and `columns`: as shown, best persona and easiest question first; questions of later
   * rounds, which only some personas were asked, stand behind those that all were asked.
   */
  permix.grid = (label) => once(grids, label, () => openGrid(permix.data.grids[label]));

  async function openGrid(told) {
    const { label } = permix.data.sheets[told.sheet];
    const sheet = await permix.sheet(label);
    const [mean, baseline] = await Promise.all([permix.unpack(told.mean), permix.unpack(told.baseline)]);
    const P = sheet.personas.length - 1, Q = baseline.length;
    const value = (row, column) => {
      const byte = row === 0 ? baseline[column] : mean[(row - 1) * Q + column];
      return byte === NOT_ASKED ? undefined : byte === NO_SCORE ? null : byte / RIGHT;
    };
    const rowMeans = Array.from({ length: P + 1 }, (_, row) => meanOf(told.opening, (column) => value(row, column)));
    const columnMeans = Array.from({ length: Q }, (_, column) => meanOf(P, (row) => value(row + 1, column)));
    const rows = [0, ...sorted(P, (row) => -rowMeans[row + 1]).map((row) => row + 1)];
    const later = (column) => (column >= told.opening ? 2 : 0);
    return { sheet, P, Q, value, rows, columns: sorted(Q, (column) => later(column) - columnMeans[column]) };
  }

  /** Mean of what has a score; -1, the last place, of nothing. */
  function meanOf(count, value) {
    let sum = 0, scored = 0;
    for (let place = 0; place < count; place++) {
      const one = value(place);
      if (one === null || one === undefined) continue;
      sum += one;
      scored++;
    }
    return scored ? sum / scored : -1;
  }

  const sorted = (count, by) => Array.from({ length: count }, (_, place) => place).sort((a, b) => by(a) - by(b) || a - b);

  /** The name of the tile that holds a place of a sheet. */
  permix.tileOf = ({ key, tile: [rows, columns] }, { row, column }) =>
    `${key}-${Math.floor(row / rows)}-${Math.floor(column / columns)}`;

  /** The cells recorded at a place, as Promise: a list by template and sample. Error says in words why they cannot be had. */
  permix.cellsAt = async (sheet, place) => {
    const name = permix.tileOf(sheet, place);
    const { stamp, texts, cells } = await tile(name);
    if (stamp !== sheet.stamp) throw new Error(`${file(name)} belongs to another report. ${MEND}`);
    const persona = sheet.personas[place.row], question = sheet.columns(place.row)[place.column];
    return cells
      .filter((cell) => cell.persona === persona && cell.question === question)
      .map((cell) => ({ ...cell, messages: cell.messages.map(([role, text]) => [role, texts[text]]) }));
  };

  const MEND = "Transcripts lie in the folder “cells” beside this page: keep the two together, or build the report again.";
  const file = (name) => `cells/${name}.js`;

  function tile(name) {
    const found = tiles.get(name) ?? load(name);
    tiles.delete(name);
    tiles.set(name, found); // the one asked for last stands last
    if (tiles.size > KEPT) tiles.delete(tiles.keys().next().value);
    found.catch(() => tiles.delete(name));
    return found;
  }

  function load(name) {
    return new Promise((resolve, reject) => {
      const script = document.createElement("script");
      const end = (why) => {
        script.remove();
        if (waiting.delete(name)) reject(new Error(`${file(name)} ${why}. ${MEND}`));
      };
      waiting.set(name, { resolve, reject });
      script.addEventListener("error", () => end("could not be loaded"));
      script.addEventListener("load", () => end("does not hold what its name says"));
      script.src = file(name);
      document.head.append(script);
    });
  }

  /** What a tile's file calls. */
  permix.cells = (name, packed) => {
    const asked = waiting.get(name);
    waiting.delete(name);
    if (asked) unpackJson(packed).then(asked.resolve, () => asked.reject(new Error(`${file(name)} is damaged. ${MEND}`)));
  };
})();
