"""An example of every answer, for the OpenAPI document; put together from a few."""

from typing import Any

JOB_ID = "7f9c24e8-3b1a-4f6d-9d3e-0123456789ab"
CREATED_AT, STARTED_AT, ENDED_AT = "2026-11-21T10:00:00.000Z", "2026-11-21T10:00:00.200Z", "2026-11-21T10:00:12.600Z"
TEXT = "Good morning, and welcome."
PIECE: dict[str, Any] = {"start": 0.0, "end": 2.4, "text": TEXT}
WORD = {"word": " Good", "start": 0.0, "end": 0.3, "confidence": 0.96}
SEGMENT = {
    "id": 0,
    **PIECE,
    "confidence": 0.95,
    "speaker": None,
    "avg_logprob": -0.05,
    "no_speech_prob": 0.01,
    "compression_ratio": 1.0,
    "temperature": 0.0,
    "seek": 0,
    "tokens": [50364, 2205, 2446, 11, 293, 2928, 13, 50484],
    "words": [WORD | {"speaker": None}],
}
RESULT: dict[str, Any] = {
    "text": TEXT,
    "language": "en",
    "language_probability": 0.98,
    "duration": 2.4,
    "model": "base",
    "mode": "accurate",
    "token_count": 8,
    "segments": [SEGMENT],
    "transcription_segments": [],
    "diarization_segments": [],
    "diarization": None,
    "quality": {
        "vad_dropped_s": 0.0,
        "low_confidence_segments": [],
        "repetition_segments": [],
        "silence_segments": [],
    },
    "queue_time_s": 0.2,
    "processing_time_s": 12.4,
    "timings": {"preparing": 0.4, "loading": 0.8, "transcribing": 11.2},
    "gpu": {
        "index": 0,
        "util_avg_percent": 63.5,
        "util_max_percent": 98.0,
        "vram_total_mb": 24576.0,
        "vram_used_avg_mb": 4200.0,
        "vram_used_max_mb": 6100.0,
        "vram_used_percent": 17.0,
        "vram_used_percent_max": 24.8,
    },
    "reused": False,
}
SUMMARY: dict[str, Any] = {
    "job_id": JOB_ID,
    "status": "completed",
    "stage": None,
    "progress": 100.0,
    "attempt": 1,
    "queue_position": None,
    "estimated_wait_s": None,
    "model": "base",
    "language": "auto",
    "task": "transcribe",
    "priority": 0,
    "file_name": "talk.mp3",
    "source_url": None,
    "file_size_bytes": 38400,
    "duration": 2.4,
    "created_at": CREATED_AT,
    "started_at": STARTED_AT,
    "finished_at": ENDED_AT,
    "queue_time_s": 0.2,
    "processing_time_s": 12.4,
    "timings": RESULT["timings"],
    "reused": False,
    "metadata": {"order": 7},
    "error": None,
}
JOB = SUMMARY | {"callback": None, "result": RESULT}
RUNNING: dict[str, Any] = {
    "busy": True,
    "job_id": JOB_ID,
    "filename": "talk.mp3",
    "stage": "transcribing",
    "progress": 35.0,
    "elapsed_seconds": 4.5,
    "stage_elapsed_seconds": 4.1,
    "transcription_segments": 12,
    "diarization_segments": 0,
    "error_message": None,
    "details": {"audio_duration_seconds": 180.5},
}
HEALTH = {
    "status": "ready",
    "reason": None,
    "version": "0.1.0",
    "gpu_available": True,
    "device": "cuda",
    "gpu_name": "NVIDIA L4",
    "memory_total_gb": None,
    "memory_available_gb": None,
    "models_loaded": {"whisper": True, "pyannote": False},
    "busy": True,
    "current_job": RUNNING,
}
MODEL = {
    "name": "base",
    "source": "whisper",
    "enabled": True,
    "state": "ready",
    "size_bytes": 145262807,
    "done_bytes": 145262807,
    "rate_bytes_per_s": None,
    "left_s": None,
    "error": None,
    "retry_at": None,
}
WORKER = {
    "index": 0,
    "device": {"kind": "cuda", "index": 0, "name": "NVIDIA L4", "uuid": "GPU-7d3f6a52-0c1b-4e1f-9f5e-1a2b3c4d5e6f"},
    "state": "busy",
    "jobs": [
        {
            **{"id": JOB_ID, "model": "base", "stage": "transcribing", "progress": 35.0},
            **{"started_at": STARTED_AT, "duration_s": 125.5, "speed": 31.4, "left_s": 2.8},
        }
    ],
    "loaded": {"base": 277.8},
    "pid": 4711,
    "answered_s_ago": 0.4,
    "restarts": 0,
    "error": None,
}
TELEMETRY = {
    **{"util_percent": 93.0, "vram_used_mb": 6100.0, "vram_ours_mb": 5200.0, "vram_others_mb": 900.0},
    **{"vram_free_mb": 16933.0, "vram_total_mb": 23034.0, "temperature_c": 61.0, "power_w": 68.2},
    **{"power_limit_w": 72.0, "clock_sm_mhz": 1890.0, "clock_mem_mhz": 6251.0, "throttle": ["power cap"]},
    **{"ecc_errors": 0, "processes": 2, "fan_percent": None, "read_s_ago": 0.4, "reason": None},
}
HOST = {
    **{"cpu_percent": 12.5, "memory_used_mb": 9216.0, "memory_total_mb": 64302.0},
    **{"disk_free_mb": 412032.0, "disk_total_mb": 960128.0},
}
READY = {"status": "ready", "reason": None}
MICRO_RESULT = {
    **{name: RESULT[name] for name in ("text", "language", "language_probability", "duration")},
    "segments": [{"id": 0, **PIECE, "confidence": 0.95, "words": [WORD]}],
    "processing_time": 12.4,
}
MICRO_JOB: dict[str, Any] = {
    "job_id": JOB_ID,
    "status": "completed",
    "progress": 100,
    "created_at": CREATED_AT,
    "started_at": STARTED_AT,
    "completed_at": ENDED_AT,
    "failed_at": None,
    "error": None,
    "result": MICRO_RESULT,
}
RQ_RESULT = {
    "text": TEXT,
    "segments": [{"id": 0, **PIECE}],
    "metadata": {
        "filename": "talk.mp3",
        "processing_time": 12.4,
        "language": "en",
        "task": "transcribe",
        "service": "gpu_daemon",
    },
}
TURN = {"start": 0.0, "end": 2.4, "speaker": "SPEAKER_00"}
BUSY = "Service occupé"
OPENAI_MODEL = {"id": "base", "object": "model", "created": 1795255200, "owned_by": "openai", "alias_of": None}
EXAMPLES: dict[str, Any] = {
    "Accepted": {
        "job_id": JOB_ID,
        "status": "queued",
        "message": "the job is next",
        "queue_position": 0,
        "estimated_wait_s": 0.0,
        "status_url": f"/jobs/{JOB_ID}",
        "result_url": f"/jobs/{JOB_ID}/result",
    },
    "Alive": {"status": "alive"},
    "AsyncHealth": {"status": "healthy", "checks": {"database": True, "workers": True}, "message": None},
    "Cancelled": {"message": "the job was cancelled", "job_id": JOB_ID},
    "DashboardState": {
        "health": READY,
        "version": "0.1.0",
        "uptime_s": 3600.0,
        "paused_by_drain": False,
        "database": {"answers": True, "latency_ms": 0.8},
        "workers": [WORKER],
        "telemetry": {"gpus": {"0": TELEMETRY}, "host": HOST},
        "queue": {
            **{"queued": 0, "running": 1, "completed": 15, "failed": 2, "cancelled": 0},
            **{"oldest_queued_s": None, "estimated_wait_s": 0.0, "queued_ids": [], "running_ids": [JOB_ID]},
        },
        "models": [MODEL],
        "callbacks": {"pending": 0, "retrying": 1, "delivered": 14, "dead": 0},
        "events": [
            {
                **{"seq": 7, "at": ENDED_AT, "level": "error", "kind": "job_failed"},
                "text": f"job {JOB_ID} failed: not_media",
            }
        ],
    },
    "Deliveries": {
        "job_id": JOB_ID,
        "url": "https://example.org/done",
        "state": "delivered",
        "attempts": 1,
        "next_attempt_at": None,
        "webhook_id": f"job_{JOB_ID}",
        "deliveries": [
            {"number": 1, "at": ENDED_AT, "duration_s": 0.08, "status": 200, "error": None, "delivered": True}
        ],
    },
    "Diarized": {"segments": [TURN]},
    "Done": {"message": "the job was cancelled", "job_id": JOB_ID},
    "Draining": {"health": {"status": "draining", "reason": "new jobs are refused"}, "queued": 0, "running": 1},
    "EventsTicket": {
        "url": f"/jobs/{JOB_ID}/events?ticket=1788000000.5d41402abc4b2a76b9719d911017c592",
        "expires_at": ENDED_AT,
    },
    "Error": {
        "error": {
            "message": "task is transcribe or translate, not 'transcript'",
            "type": "invalid_request_error",
            "param": "task",
            "code": "invalid_value",
        }
    },
    "Health": HEALTH,
    "HistoryPage": {
        "window": "1h",
        "bucket_s": 60,
        "buckets": [
            {
                **{"at": ENDED_AT, "completed": 12, "failed": 1, "cancelled": 0, "audio_s": 1830.5, "speed": 30.5},
                **{"wait_p50_s": 0.2, "wait_p95_s": 1.9, "total_p50_s": 5.1, "total_p95_s": 12.4},
            }
        ],
    },
    "JobOfService": JOB | {"error": None, "error_code": None},
    "JobPage": {"jobs": [SUMMARY], "next_cursor": None},
    "JobView": JOB,
    "LanguagePage": {"languages": [{"code": "en", "name": "English"}]},
    "MicroAccepted": {
        "job_id": JOB_ID,
        "status": "pending",
        "message": "the job was accepted and waits for its turn",
        "status_url": f"/api/v1/status/{JOB_ID}",
        "estimated_time": 30,
    },
    "MicroJob": MICRO_JOB,
    "MicroJobs": {"jobs": [MICRO_JOB | {"result": None}], "total": 1, "page": 1, "page_size": 20},
    "MicroModels": {
        "models": [{"name": "base", "size": "138 MB", "loaded": True, "state": "ready"}],
        "current_model": "base",
    },
    "MicroResult": MICRO_RESULT,
    "ModelPage": {"models": [MODEL]},
    "ModelView": MODEL,
    "OpenAIModel": OPENAI_MODEL,
    "OpenAIModels": {"object": "list", "data": [OPENAI_MODEL]},
    "PendingCallbacks": {
        "callbacks": [
            {
                **{"job_id": JOB_ID, "state": "pending", "attempts": 2, "next_attempt_at": ENDED_AT},
                **{"last_error": "HTTP status 502", "host": "example.org"},
            }
        ]
    },
    "Processed": {
        "text": TEXT,
        "segments": [PIECE | {"speaker": "SPEAKER_00"}],
        "transcription_segments": [PIECE],
        "diarization_segments": [TURN],
        "diarization_error": None,
    },
    "Queue": {"status": "busy", "queued": [], "running": [JOB_ID]},
    "QueueStats": {
        **{"queue_name": "transcription", "queued": 3, "started": 1, "finished": 15, "reused": 4},
        **{"failed": 2, "cancelled": 0, "workers": 1},
    },
    "Ready": READY | {"database": True},
    "Result": RESULT,
    "RocmError": {
        "error": BUSY,
        "message": "the queue is full: 10000 jobs wait",
        "code": "queue_full",
        "current_job": RUNNING,
    },
    "RocmHealth": HEALTH | {"status": "ok"},
    "RqAccepted": {
        "job_id": JOB_ID,
        "status": "queued",
        "message": "Transcription job queued: talk.mp3",
        "queue_position": 0,
        "estimated_wait": "0 minutes",
    },
    "RqJob": {
        "job_id": JOB_ID,
        "status": "finished",
        "message": "Transcription completed",
        "created_at": "2026-11-21T10:00:00.000000",
        "started_at": "2026-11-21T10:00:00.200000",
        "ended_at": "2026-11-21T10:00:12.600000",
        "result": RQ_RESULT,
    },
    "RqResult": RQ_RESULT,
    "RunningJob": RUNNING,
    "ScaleJob": {
        "job_id": JOB_ID,
        "status": "success",
        "filename": "talk.mp3",
        "message": "Transcription completed",
        "progress": 100.0,
        "result": RESULT,
    },
    "Service": {
        "service": "gpu_daemon",
        "version": "0.1.0",
        "status": "ready",
        "endpoints": {"/transcribe": "POST: transcribe and wait"},
    },
    "Stats": {
        "workers": {"count": 1, "active_tasks": 1},
        "jobs": {"queued": 3, "processing": 1, "completed": 15, "failed": 2, "cancelled": 0},
        "cache": {"hits": 4},
    },
    "Transcribed": {"text": TEXT, "segments": [PIECE]},
    "WorkerPage": {"workers": [WORKER]},
    "WorkerView": WORKER,
}
"""By the name of the schema."""
OF_TYPES = {
    "text/plain": f"{TEXT}\n",
    "application/x-subrip": f"1\n00:00:00,000 --> 00:00:02,400\n{TEXT}\n\n",
    "text/vtt": f"WEBVTT\n\n00:00.000 --> 00:02.400\n{TEXT}\n\n",
    "text/tab-separated-values": f"start\tend\ttext\n0\t2400\t{TEXT}\n",
    "text/event-stream": "id: 1-3\nevent: state\ndata: {}\n\n",
    "application/json": {"text": TEXT},
}
"""By media type, where no schema is named."""
