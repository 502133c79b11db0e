"""The supervised methods of `permix train`: choose what to learn from, keep it, learn it.

`sft` and `sft-personas` learn the gold solutions of the plan's rows, `seqkd` a teacher's right samples of them. What a run leaves
besides the files of every training:

    examples.jsonl, examples.json    what is learnt from, and how it was counted
    samples.md                       some of it, for reading
    records.jsonl, teacher.json      seqkd: every sample of the teacher, judged; who the teacher was
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from permix.config import TrainStage
from permix.errors import ConfigError
from permix.models.hf import completion_ids, context_window, encode_chat, load_tokenizer
from permix.models.machine import release_memory
from permix.progress import meter, say
from permix.records import RunDir
from permix.train.checkpoints import step_of
from permix.train.distill import teacher_examples
from permix.train.examples import Chosen, Example, gold_examples, keep, kept, steps_of, words
from permix.train.log import FigureLog
from permix.train.plan import Plan
from permix.train.probe import Probe
from permix.train.weights import lora, network_of, seed_trainer
from permix.verify import Verifier


def supervise(config: TrainStage, plan: Plan, probe: Probe | None, source: str, run: RunDir, checkpoint: Path | None) -> Any:
    """Run or go on with a supervised training; returns the trainer, which holds the trained network."""
    tokenizer = load_tokenizer(source)
    chosen = kept(run.path) or _choose(config, plan, run, tokenizer, context_window(source))
    release_memory()  # a teacher in this process is not needed any more
    return _learn(config, chosen, probe, tokenizer, source, run.path, checkpoint)


def _choose(config: TrainStage, plan: Plan, run: RunDir, tokenizer: Any, window: int) -> Chosen:
    """What will be learnt from, as it was written down."""
    with Verifier() as verifier:
        if config.method == "seqkd":
            chosen = within(teacher_examples(config, plan, run, verifier), tokenizer, window)
        else:
            chosen = gold_examples(plan, verifier)
            refuse_long(chosen.examples, tokenizer, config.train.max_new_tokens)
    say(f"train {config.label or config.out.name}: {words(chosen.counts)}")
    return keep(run.path, chosen, config.train.samples_every)


def refuse_long(examples: Sequence[Example], tokenizer: Any, limit: int) -> None:
    """Raise ConfigError when a solution is longer than a completion may be, naming the longest."""
    size, longest = max(((length(one, tokenizer), one) for one in examples), key=lambda pair: pair[0])
    if size > limit:
        raise ConfigError(
            f"train.max_new_tokens = {limit}: the solution of question {longest.question_id} has {size} tokens with its end, the "
            f"most of all; give train.max_new_tokens = {size} or more, or other questions"
        )


def within(chosen: Chosen, tokenizer: Any, window: int) -> Chosen:
    """What the model can read: a teacher counts in tokens of its own, and a sample may be more of this model's."""
    fitting = tuple(
        one for one in chosen.examples if len(encode_chat(tokenizer, one.messages)) + length(one, tokenizer) <= window
    )
    if not fitting:
        raise ConfigError(
            f"train.max_new_tokens: no right sample of the teacher fits into the {window} tokens that the model reads; "
            "give a smaller limit and another folder"
        )
    dropped = {"right samples left out, as the model cannot read so much": len(chosen.examples) - len(fitting)}
    return Chosen(fitting, chosen.counts | {"examples": len(fitting)} | (dropped if len(fitting) < len(chosen.examples) else {}))


def length(example: Example, tokenizer: Any) -> int:
    """Tokens of a completion, with its end where it has one."""
    return len(completion_ids(example.completion, tokenizer)) + example.ended


def _learn(
    config: TrainStage, chosen: Chosen, probe: Probe | None, tokenizer: Any, source: str, out: Path, checkpoint: Path | None
) -> Any:
    from permix.train.prober import Prober
    from permix.train.sft import ExampleTrainer, sft_arguments

    done, steps = step_of(checkpoint), steps_of(chosen.examples)
    arguments = sft_arguments(config.train, len(steps), out / "checkpoints")
    with meter(f"train {config.label or config.out.name}", arguments.max_steps, "steps") as shown:
        shown.start_at(done)
        network = network_of(source)
        seed_trainer(config.train.seed)
        trainer = ExampleTrainer(
            steps=steps, micro_tokens=config.train.micro_tokens, recorder=FigureLog(out, done, shown), args=arguments,
            model=network, processing_class=tokenizer, peft_config=lora(config.train),
        )  # fmt: skip
        if probe is not None:
            trainer.add_callback(Prober(probe, done, trainer.probed()))
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return trainer
