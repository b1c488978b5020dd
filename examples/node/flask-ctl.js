// A client for flask-ctl's Unix socket: JSON-RPC 2.0, one message a line.
// Usage: node flask-ctl.js SOCKET METHOD [PARAMS]
"use strict";
const net = require("node:net");
const readline = require("node:readline");

class ControlError extends Error {
  constructor({ code, message, data }) {
    super(message);
    Object.assign(this, { code, data });
  }
}

class ControlClient {
  #socket;
  #waiting = new Map();
  #next = 1;
  #onProgress;

  constructor(path, { onProgress = () => {} } = {}) {
    this.#onProgress = onProgress;
    this.#socket = net.connect(path);
    const fail = (error) => this.#failAll(error);
    this.#socket.on("error", fail).on("close", () => fail(new Error("the server closed the connection")));
    readline.createInterface({ input: this.#socket }).on("line", (line) => this.#receive(JSON.parse(line))).on("error", fail);
  }

  /** The result of a command. Rejects with a ControlError for an error of the server. */
  call(method, params = {}) {
    const id = this.#next++;
    this.#socket.write(JSON.stringify({ jsonrpc: "2.0", id, method, params }) + "\n");
    return new Promise((resolve, reject) => this.#waiting.set(id, { resolve, reject }));
  }

  /** Stop the server; resolves with the result when it has ended, which the end of the connection proves. */
  async stop(params = {}) {
    const ended = new Promise((resolve) => this.#socket.once("close", resolve));
    const result = await this.call("stop", { ...params, _progress: true });
    await ended;
    return result;
  }

  close() {
    this.#socket.end();
  }

  #receive({ id, method, params, result, error }) {
    if (method === "progress") return this.#onProgress(params);
    const { resolve, reject } = this.#waiting.get(id);
    this.#waiting.delete(id);
    return error ? reject(new ControlError(error)) : resolve(result);
  }

  #failAll(error) {
    for (const { reject } of this.#waiting.values()) reject(error);
    this.#waiting.clear();
  }
}

async function main([path, method, params = "{}"]) {
  const client = new ControlClient(path, { onProgress: ({ phase }) => console.error(`... ${phase}`) });
  try {
    const result = await (method === "stop" ? client.stop(JSON.parse(params)) : client.call(method, JSON.parse(params)));
    console.log(JSON.stringify(result, null, 2));
  } catch (error) {
    console.error(error.code === undefined ? error.message : `error ${error.code}: ${error.message}`);
    process.exitCode = 1;
  } finally {
    client.close();
  }
}

module.exports = { ControlClient, ControlError };
if (require.main === module) main(process.argv.slice(2));
