// Every call and format of OpenAI's audio API through OpenAI's own client; prints what came back as JSON.
// `node openai.cjs BASE_URL WAV GO`: GO is a file that the daemon's fake engine waits for.
const { createRequire } = require("node:module");
const { createReadStream, writeFileSync } = require("node:fs");
const { join } = require("node:path");
const buffer = require("node:buffer");

globalThis.File ??= buffer.File; // Node.js 18 keeps it there
const installed = createRequire(join(process.cwd(), "package.json"));
const { OpenAI, NotFoundError, BadRequestError, InternalServerError, APIError } = installed("openai");

const [baseURL, wav, go] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "any" });
const ask = (given) =>
    client.audio.transcriptions.create({ file: createReadStream(wav), model: "whisper-1", ...given });
const translate = (given) =>
    client.audio.translations.create({ file: createReadStream(wav), model: "whisper-1", ...given });

async function refused(asked) {
    try {
        await asked;
        return null;
    } catch (error) {
        const kinds = { NotFoundError, BadRequestError, InternalServerError, APIError };
        const kind = Object.keys(kinds).find((name) => error instanceof kinds[name]);
        return { kind, status: error.status, code: error.code, param: error.param, hasId: Boolean(error.requestID) };
    }
}

async function streamed(given, heard = () => {}) {
    const events = [];
    for await (const event of await ask({ stream: true, ...given })) {
        events.push(event);
        heard(event);
    }
    return events;
}

async function main() {
    const said = {};
    for (const response_format of ["json", "text", "srt", "vtt", "verbose_json", "diarized_json"]) {
        said[response_format] = await ask({ response_format });
    }
    said.words = await ask({ response_format: "verbose_json", timestamp_granularities: ["word", "segment"] });
    said.all_fields = await ask({
        language: "en",
        prompt: "Names.",
        temperature: 0.2,
        chunking_strategy: { type: "server_vad", threshold: 0.5, prefix_padding_ms: 300, silence_duration_ms: 200 },
    });
    said.logprobs = await ask({ include: ["logprobs"] });
    said.streamed_logprobs = await streamed({ include: ["logprobs"] });
    said.auto = await ask({ chunking_strategy: "auto" });
    for (const response_format of ["json", "text", "srt", "vtt", "verbose_json"]) {
        said[`translated_${response_format}`] = await translate({ response_format });
    }
    said.streamed = await streamed({ prompt: `fake:then=until=${go}` }, () => writeFileSync(go, ""));
    said.streamed_diarized = await streamed({
        model: "gpt-4o-transcribe-diarize",
        response_format: "diarized_json",
        chunking_strategy: "auto",
    });
    said.models = (await client.models.list()).data.map((model) => model.id);
    said.model = (await client.models.retrieve("whisper-1")).id;
    said.refused = {
        model: await refused(ask({ model: "huge" })),
        format: await refused(ask({ response_format: "docx" })),
        logprobs: await refused(ask({ include: ["logprobs"], response_format: "verbose_json" })),
        failed: await refused(ask({ prompt: "fake:error" })),
        stream: await refused(streamed({ prompt: "fake:error" })),
    };
    const hanging = new AbortController();
    const asking = client.audio.transcriptions.create(
        { file: createReadStream(wav), model: "whisper-1", prompt: `fake:until=${go}-never`, stream: true },
        { signal: hanging.signal },
    );
    await asking; // its headers
    hanging.abort();
    console.log(JSON.stringify(said));
}

main().catch((error) => {
    console.error(error);
    process.exit(1);
});
