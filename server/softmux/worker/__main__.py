"""`python -m softmux.worker`, its `WorkerConfig` on standard input: started by the supervisor, never by hand."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from softmux.errors import InternalError, SelfTestFailed
from softmux.recorder import FlightRecorder
from softmux.registry.reader import BlobReader
from softmux.scheduler.radix import RootKey
from softmux.settings import Settings
from softmux.telemetry.logs import configure
from softmux.worker.config import REFUSED, WorkerConfig
from softmux.worker.crew import Crew

log = logging.getLogger(__name__)


def main() -> int:
    config = msgspec.json.decode(sys.stdin.buffer.readline(), type=WorkerConfig)
    settings = Settings(**config.settings)
    configure(settings.log_level, form=settings.log_format)
    crew: Crew | None = None
    if settings.tensor_parallel > 1:
        beside = Path(config.endpoint.removeprefix("ipc://")).parent
        crew = Crew(settings.tensor_parallel, beside, config.settings)
    from transformers.utils import logging as transformers_logging

    from softmux.engine.bases import check_sharded
    from softmux.worker.process import Worker

    transformers_logging.set_verbosity_error()  # its notices on a model's files are not the operator's business
    transformers_logging.disable_progress_bar()
    recorder = FlightRecorder(settings.max_rows, Path(config.recorder)) if config.recorder is not None else None
    reader = BlobReader(config.registry_url, config.blob_url)

    def source(key: RootKey) -> Mapping[str, bytes]:
        if key.digest is None:
            raise InternalError("the bare model has no adapter to load")
        _, files = reader.read(key.owner or key.tenant, key.digest)
        return files

    try:
        if crew is not None:
            check_sharded(settings)
        worker = Worker(config.endpoint, settings, source, Path(config.data) / "cache" / "kv", recorder, crew)
    except (SelfTestFailed, OSError, ValueError) as error:  # starting it again would not help
        print(error, file=sys.stderr)  # noqa: T201 - the supervisor shows this line
        return REFUSED
    if crew is None:
        worker.run(config.supervisor)
        return 0
    code = 1
    try:
        worker.run(config.supervisor)
        crew.end()
        code = 0
    except Exception:
        log.exception("rank 0 ends of an error, and the others with it")
    logging.shutdown()
    os._exit(code)  # communicators of CUDA are not taken down one by one


if __name__ == "__main__":
    sys.exit(main())
