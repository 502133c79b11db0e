"""What `accelerate launch --config_file configs/launch/NAME.yaml` puts into the environment, by accelerate's own code."""

from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "configs" / "launch"


def environment(name: str) -> dict[str, str]:
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    words = ["--config_file", str(FOLDER / f"{name}.yaml"), "-m", "permix", "train"]
    asked, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    if asked.use_deepspeed:
        asked.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        _, found = prepare_deepspeed_cmd_env(asked)
    else:
        found = prepare_multi_gpu_env(asked)
    return {key: value for key, value in found.items() if key.startswith(("ACCELERATE_", "FSDP_"))}


def shard_on_cpu() -> None:
    """Make accelerate share out weights over processes on CPUs, which it does on GPUs only: torch can do it on both."""
    import accelerate.state as state
    from accelerate.utils import DistributedType

    original = state.PartialState.__init__

    def init(self: Any, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **options)
        if self.__dict__.get("distributed_type") == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    state.PartialState.__init__ = init
