"""What `bench/generate.py` compares with: a pipeline inside a Celery task, one job at a time.

    python -m bench.support.plain_generate REDIS_URL MODEL_FOLDER PRECISION

runs the worker. The results come back through Celery's Redis backend.
"""

import sys
from typing import Any

from celery import Celery
from transformers import pipeline

from shared.config import Settings
from workers.models.load import load_generator

TASK = "plain.generate"


def make_app(redis_url: str) -> Celery:
    return Celery("plain", broker=redis_url, backend=redis_url, set_as_current=False)


def main() -> None:
    redis_url, folder, precision = sys.argv[1:]
    settings = Settings(_env_file=None, generation_precision=precision)
    loaded = load_generator(folder, settings)
    make: Any = pipeline  # its overloads know no tokenizer by its base class
    generator = make("text-generation", model=loaded.model, tokenizer=loaded.tokenizer)
    app = make_app(redis_url)

    def generate(prompt: str, max_tokens: int) -> str:
        outputs = generator(
            prompt, max_new_tokens=max_tokens, do_sample=False, return_full_text=False
        )
        return str(outputs[0]["generated_text"])

    app.task(name=TASK)(generate)
    app.worker_main(["worker", "--pool", "solo", "--loglevel", "warning"])


if __name__ == "__main__":
    main()
