// A request of OpenAI's own client that breaks off while its job runs, and is sent again by the client itself; prints the
// text that came in the end, and the retry counts as JSON.
// `node retry.cjs BASE_URL WAV GO`: GO is a file that the daemon's fake engine waits for.
const { createRequire } = require("node:module");
const { readFileSync, writeFileSync } = require("node:fs");
const { join } = require("node:path");
const buffer = require("node:buffer");

globalThis.File ??= buffer.File; // Node.js 18 keeps it there
const installed = createRequire(join(process.cwd(), "package.json"));
const { OpenAI } = installed("openai");

const [baseURL, wav, go] = process.argv.slice(2);
const counts = [];

async function running() {
    const queue = await fetch(new URL("/queue", baseURL));
    return (await queue.json()).running.length > 0;
}

async function breaksOffOnce(url, given) {
    counts.push(new Headers(given.headers).get("x-stainless-retry-count"));
    if (counts.length > 1) {
        writeFileSync(go, "");
        return fetch(url, given);
    }
    const line = new AbortController();
    const asking = fetch(url, { ...given, signal: line.signal });
    while (!(await running()));
    line.abort();
    return asking;
}

async function main() {
    const client = new OpenAI({ baseURL, apiKey: "any", fetch: breaksOffOnce });
    const { text } = await client.audio.transcriptions.create({
        file: new File([readFileSync(wav)], "talk.wav"), // a stream it does not send twice
        model: "whisper-1",
        prompt: `fake:until=${go}`,
    });
    console.log(JSON.stringify({ text, counts }));
}

main().catch((error) => {
    console.error(error);
    process.exit(1);
});
