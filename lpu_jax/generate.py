"""The main job: SmolLM2 answers a prompt on one emulated chip, and every token has its exact cycle count.

In: a GGUF file and a prompt. Out: the answer as it comes, then a `Result`: the reports of the prefill and decode
programs, and the distance of the logits from those of the same model in fp32 under `jax.jit`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lpu_jax.models.chat import bucket, jit_decode, jit_prefill, pad_prompt
from lpu_jax.models.smollm2 import Smollm2, decode, prefill
from lpu_jax.models.tokenizer import Tokenizer
from lpu_jax.report import Report, pcie_seconds
from lpu_jax.runtime.chip import ChipSpec
from lpu_jax.runtime.errors import LpuError, SramOverflowError
from lpu_jax.stages import Compiled
from lpu_jax.transform import lpu

Status = Callable[[str], contextlib.AbstractContextManager[Any]]
StepResult = tuple[Any, Any, Any, Any]


class PromptError(LpuError, ValueError):
    """A prompt that does not fit into the context."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What to generate.

    Invariants: max_tokens >= 1; temperature >= 0, and 0 takes the likeliest token; context >= 1.
    """

    prompt: str
    model_path: Path
    chip: ChipSpec
    max_tokens: int
    temperature: float
    seed: int
    context: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distance:
    """How far the logits are from those of the fp32 model, on the same tokens.

    Attributes:
      positions: number of generated positions that were compared.
      kl_mean, kl_max: KL(fp32 || LPU) in nats.
      top1_agreement: share of positions at which both have the same likeliest token.
    """

    positions: int
    kl_mean: float
    kl_max: float
    top1_agreement: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """An answer and what it cost.

    Attributes:
      prefill: report of the prompt's program; None if there is none, then the prompt went through the decode program.
      prefill_problem: why `prefill` is None.
      prefill_cycles: cycles of the whole prompt.
      decode: report of one token.
      host_seconds_per_token: wall time of the emulation per token after the second; None for shorter answers.
    """

    prompt_tokens: int
    tokens: tuple[int, ...]
    text: str
    finished: bool
    chip: ChipSpec
    prefill: Report | None
    prefill_problem: str
    prefill_cycles: int
    decode: Report
    distance: Distance
    host_seconds_per_token: float | None

    @property
    def chip_tokens_per_second(self) -> float:
        """Tokens per second of chip time, PCIe not counted."""
        return 1 / self.decode.seconds

    @property
    def tokens_per_second_with_pcie(self) -> float:
        """Tokens per second if every token's arguments and results cross PCIe, one after the other."""
        return 1 / self.decode.total_seconds

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "text": self.text,
            "tokens": list(self.tokens),
            "prompt_tokens": self.prompt_tokens,
            "finished": self.finished,
            "chip": self.chip.name,
            "prefill": {
                "cycles": self.prefill_cycles,
                "microseconds": self.prefill_cycles * 1_000_000 / self.chip.clock_hz,
                "problem": self.prefill_problem or None,
                "report": self.prefill.to_dict(detail=False) if self.prefill else None,
            },
            "decode": {
                "cycles_per_token": self.decode.cycles,
                "microseconds_per_token": self.decode.microseconds,
                "tokens_per_second_of_chip_time": self.chip_tokens_per_second,
                "tokens_per_second_with_pcie": self.tokens_per_second_with_pcie,
                "bounded_by": self.decode.bounded_by,
                "report": self.decode.to_dict(detail=False),
            },
            "distance_to_fp32": dataclasses.asdict(self.distance),
            "host_seconds_per_token": self.host_seconds_per_token,
        }


def generate(job: Job, emit: Callable[[str], None], status: Status) -> Result:
    """Runs a job.

    Args:
      job: what to generate.
      emit: gets the answer's text piece by piece.
      status: shows what is going on, as a context manager.

    Raises:
      ModelFileError: the model file is missing, truncated or foreign.
      PromptError: the prompt does not fit into the context.
      SramOverflowError: the decode program does not fit into the chip.
    """
    with status("reading the model"):
        tokenizer = Tokenizer.from_gguf(job.model_path)
        prompt = tokenizer.chat([("user", job.prompt)])
        if len(prompt) > job.context:
            raise PromptError(
                f"the prompt has {len(prompt)} tokens, the context holds {job.context}. "
                "Shorten the prompt or raise --context."
            )
        model = Smollm2.from_gguf(job.model_path, weights="int8", context=job.context)
    machine = Machine(model, len(prompt), job.chip, status)
    sampler = Sampler(job.temperature, job.seed)
    tokens: list[int] = []
    logits: list[jax.Array] = []
    times: list[float] = []
    finished = False
    stream = tokenizer.stream()
    for step_logits, likeliest in machine.steps(prompt, lambda: tokens[-1]):
        logits.append(step_logits)
        token = sampler(step_logits, likeliest)
        times.append(time.perf_counter())
        if token == tokenizer.eos_id:
            finished = True
            break
        tokens.append(token)
        emit(stream.push(token))
        if len(tokens) == job.max_tokens:
            break
    emit(stream.finish())
    reports = machine.reports()
    del machine, model
    with status("comparing with the fp32 model"):
        distance = compare(job, prompt, tokens, logits)
    steady = times[1:]  # the step before the second token also compiles for the host
    return Result(
        prompt_tokens=len(prompt),
        tokens=tuple(tokens),
        text=tokenizer.decode(tokens),
        finished=finished,
        chip=job.chip,
        distance=distance,
        host_seconds_per_token=(steady[-1] - steady[0]) / (len(steady) - 1) if len(steady) > 1 else None,
        **reports,
    )


class Sampler:
    """Chooses the next token: the likeliest, or a sample at a temperature (softmax(logits / temperature))."""

    def __init__(self, temperature: float, seed: int) -> None:
        """Starts the random numbers; equal seeds give equal answers."""
        self._temperature = temperature
        self._rng = np.random.default_rng(seed)

    def __call__(self, logits: jax.Array, likeliest: jax.Array) -> int:
        """The next token."""
        if self._temperature == 0:
            return int(likeliest)
        scaled = np.asarray(logits, np.float64) / self._temperature
        return int(np.argmax(scaled + self._rng.gumbel(size=scaled.shape)))


class Machine:
    """The two programs of a chat on one chip, weights in place."""

    def __init__(self, model: Smollm2, prompt_length: int, chip: ChipSpec, status: Status) -> None:
        """Compiles both programs.

        Raises:
          SramOverflowError: the decode program does not fit.
        """
        config, self._model = model.config, model
        self._chip, self._prompt_length, self._status = chip, prompt_length, status
        scalar = jax.ShapeDtypeStruct((), jnp.int32)
        caches = [jax.ShapeDtypeStruct(c.shape, c.dtype) for c in jax.eval_shape(model.empty_caches)]
        with status("compiling the decode program"):
            step = lpu(decode, chip=chip, resident_argnums=(0, 3, 4), donate_argnums=(3, 4))
            self._decode = step.lower(model, scalar, scalar, *caches).compile()
        rows = jax.ShapeDtypeStruct((bucket(prompt_length, config.context),), jnp.int32)
        self._prefill: Compiled | None = None
        self._prefill_problem = ""
        with status("compiling the prefill program"):
            try:
                self._prefill = lpu(prefill, chip=chip, resident_argnums=0).lower(model, rows, scalar).compile()
            except SramOverflowError as error:
                self._prefill_problem = str(error)

    def steps(self, prompt: Sequence[int], chosen: Callable[[], int]) -> Iterator[tuple[jax.Array, jax.Array]]:
        """Yields (logits, likeliest token) of each position from the prompt's last on, until the context is full.

        Args:
          prompt: its tokens.
          chosen: the token that followed the last yield.
        """
        context = self._model.config.context
        with self._status("loading the weights"):
            step = self._decode.load(self._model)
        with self._status("reading the prompt"):
            logits, likeliest, *caches = self._read_prompt(prompt, step)
        yield logits, likeliest
        for position in range(len(prompt), context):
            logits, likeliest, *caches = step(jnp.int32(chosen()), jnp.int32(position), *caches)
            yield logits, likeliest

    def _read_prompt(self, prompt: Sequence[int], step: Callable[..., StepResult]) -> StepResult:
        if self._prefill is not None:
            padded = pad_prompt(prompt, self._model.config.context)
            result: StepResult = self._prefill(self._model, padded, jnp.int32(len(prompt)))
            return result
        logits = likeliest = None
        caches: Sequence[Any] = self._model.empty_caches()
        for position, token in enumerate(prompt):
            logits, likeliest, *caches = step(jnp.int32(token), jnp.int32(position), *caches)
        return logits, likeliest, caches[0], caches[1]

    def reports(self) -> dict[str, Any]:
        """The fields of `Result` that tell about the programs."""
        decoding = self._decode.report()
        if self._prefill is None:
            cycles = decoding.cycles * self._prompt_length
            return {
                "decode": decoding,
                "prefill": None,
                "prefill_cycles": cycles,
                "prefill_problem": self._prefill_problem,
            }
        report = self._caches_stay(self._prefill.report())
        return {"decode": decoding, "prefill": report, "prefill_cycles": report.cycles, "prefill_problem": ""}

    def _caches_stay(self, report: Report) -> Report:
        """The caches are results of the prefill program, but stay in SRAM for the decode program."""
        caches = sum(c.size * c.dtype.itemsize for c in jax.eval_shape(self._model.empty_caches))
        size = report.pcie_out_bytes - caches
        return dataclasses.replace(report, pcie_out_bytes=size, pcie_out_seconds=pcie_seconds(self._chip, size))


def compare(job: Job, prompt: Sequence[int], tokens: Sequence[int], logits: Sequence[jax.Array]) -> Distance:
    """Runs the fp32 model under `jax.jit` on the same tokens and measures the distance of the logits."""
    model = Smollm2.from_gguf(job.model_path, weights="fp32", context=job.context)
    reference, _, *caches = jit_prefill(model, pad_prompt(prompt, job.context), jnp.int32(len(prompt)))
    divergences, agreements = [], []
    for i, ours in enumerate(logits):
        if i:
            position = len(prompt) + i - 1
            reference, _, *caches = jit_decode(model, jnp.int32(tokens[i - 1]), jnp.int32(position), *caches)
        divergence, agrees = _divergence(reference, ours)
        divergences.append(float(divergence))
        agreements.append(bool(agrees))
    return Distance(
        positions=len(logits),
        kl_mean=float(np.mean(divergences)),
        kl_max=float(np.max(divergences)),
        top1_agreement=float(np.mean(agreements)),
    )


@jax.jit
def _divergence(reference: jax.Array, ours: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(KL(softmax(reference) || softmax(ours)) in nats, whether both have the same argmax)."""
    expected, found = jax.nn.log_softmax(reference), jax.nn.log_softmax(ours)
    kl = jnp.sum(jnp.exp(expected) * (expected - found))
    return jnp.maximum(kl, 0.0), jnp.argmax(reference) == jnp.argmax(ours)
