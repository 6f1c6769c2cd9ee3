-- Jobs, their results and the callbacks they owe.
CREATE TABLE jobs (
    id                  uuid PRIMARY KEY,
    seq                 bigint GENERATED ALWAYS AS IDENTITY UNIQUE,  -- order of arrival
    state               text NOT NULL CHECK (state IN ('queued', 'processing', 'completed', 'failed', 'cancelled')),
    stage               text,
    progress            real NOT NULL DEFAULT 0,
    attempt             integer NOT NULL DEFAULT 0,
    lease_token         uuid,               -- of the last attempt; every write of a worker compares it
    worker_index        integer,
    priority            smallint NOT NULL DEFAULT 0,
    client              text,               -- which API key sent it; NULL: no keys configured
    options             jsonb NOT NULL,
    requested_language  text NOT NULL,
    file_name           text NOT NULL,
    source_url          text,               -- NULL: the file was uploaded; without its query once the job has ended
    file_size_bytes     bigint CHECK (file_size_bytes IS NOT NULL OR source_url IS NOT NULL),  -- NULL: not fetched yet
    file_sha256         text CHECK (file_sha256 IS NOT NULL OR source_url IS NOT NULL),
    duration_s          double precision,
    callback_url        text,
    metadata            json,               -- json, not jsonb: clients get their own text back
    idempotency_key     text,               -- as the client sent it; unique among the jobs of a client
    request_sha256      text,               -- what it sent under that key, so that another request is told apart
    reused              boolean NOT NULL DEFAULT false,  -- the result is that of an earlier job with the same audio
    model_sha256        text,               -- of the checkpoint that made the result
    result              json,               -- the Transcript with times and GPU figures; json keeps the order of its keys
    timings             jsonb NOT NULL DEFAULT '{}',
    error_code          text,
    error_message       text,
    created_at          timestamptz NOT NULL DEFAULT now(),
    started_at          timestamptz,
    finished_at         timestamptz,
    cancel_requested_at timestamptz
);
CREATE INDEX jobs_queued ON jobs (priority DESC, seq) WHERE state = 'queued';
CREATE UNIQUE INDEX jobs_idempotency ON jobs (coalesce(client, ''), idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX jobs_processing ON jobs (id) WHERE state = 'processing';
CREATE INDEX jobs_reusable ON jobs (file_sha256) WHERE state = 'completed';
CREATE INDEX jobs_finished ON jobs (finished_at) WHERE finished_at IS NOT NULL;

-- The outbox: one row per job that owes a callback, written in the transaction that ends the job.
CREATE TABLE callbacks (
    id                bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id            uuid NOT NULL UNIQUE REFERENCES jobs ON DELETE CASCADE,
    url               text NOT NULL,
    -- The receiver, with its port as it stands in the URL: what shares it shares a few places at a time.
    host              text COLLATE "C" NOT NULL GENERATED ALWAYS AS (
                          left(lower(coalesce(substring(url FROM '^[^:]*://(?:[^/?#]*@)?([^/?#]*)'), '')), 255)) STORED,
    payload           json NOT NULL,        -- without its `callback` member, which is said anew at each try
    state             text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'delivered', 'dead')),
    attempts          integer NOT NULL DEFAULT 0,            -- in all; every record of a try compares it
    schedule          integer NOT NULL DEFAULT 0,            -- a redelivery begins the next one
    schedule_attempts integer NOT NULL DEFAULT 0,
    schedule_began_at timestamptz NOT NULL DEFAULT now(),
    next_attempt_at   timestamptz NOT NULL DEFAULT now(),
    last_status       integer,
    last_error        text,
    delivered_at      timestamptz
);
CREATE INDEX callbacks_pending ON callbacks (host, next_attempt_at, id) WHERE state = 'pending';

-- The log of deliveries: the newest tries of each callback, written in the transaction that records the outcome.
CREATE TABLE callback_attempts (
    callback_id  bigint NOT NULL REFERENCES callbacks ON DELETE CASCADE,
    number       integer NOT NULL,          -- from 1, over all schedules
    at           timestamptz NOT NULL,
    duration_s   double precision NOT NULL,
    status       integer,                   -- NULL: no answer
    error        text,                      -- NULL: delivered
    PRIMARY KEY (callback_id, number)
);
