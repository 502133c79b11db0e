"""The agent loop of an exported training in verl: one turn, with what a row of a data set cannot say.

Each rollout of a group has its own prompt (scope "rollout": its own persona) and its own seed, the one that `permix train` gives
it. The reward gets the completion's text as `permix train` reads it, with its tags of thinking. A prompt over the limit is an
error: verl would cut it on its left, which removes the persona.
"""

import json
from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

from permix.inference.chat_template import decode_completion, end_of_turn_ids
from permix.interop.verl_reward import COMPLETION_FIELD, ROLLOUT_FIELD
from permix.types import seed_from


class PermixAgentLoop(SingleTurnAgentLoop):  # type: ignore[misc]
    """verl's single turn, for rows that `permix export --format verl` wrote."""

    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **kwargs: Any) -> AgentLoopOutput:
        """Generate one rollout. `session_id` in `kwargs` is its number in the group, from 0."""
        number = int(kwargs["session_id"])
        rollouts = json.loads(kwargs["extra_info"]["rollouts"])
        rollout = rollouts[number % len(rollouts)]
        seed = seed_from(rollout["seed"], number // len(rollouts))
        own = {**kwargs, "raw_prompt": rollout["messages"]}
        output: AgentLoopOutput = await super().run({**sampling_params, "seed": seed}, priority, **own)
        output.extra_fields[ROLLOUT_FIELD] = number
        output.extra_fields[COMPLETION_FIELD] = self._completion_text(output)
        return output

    def _completion_text(self, output: AgentLoopOutput) -> str:
        """The text that is scored. verl's own is decoded without special tokens, and without what the prompt opened."""
        stops = {self.tokenizer.eos_token_id, *end_of_turn_ids(self.tokenizer)[:1]}
        return decode_completion(self.tokenizer, output.response_ids, stops, output.prompt_ids)

    def _cap_text_prompt_length(self, prompt_ids: list[int]) -> list[int]:
        """The prompt as it is. Raises ValueError for one over the limit, which verl would cut."""
        limit = self.rollout_config.prompt_length
        if len(prompt_ids) > limit:
            raise ValueError(f"data.max_prompt_length = {limit}: a prompt has {len(prompt_ids)} tokens; raise the limit")
        return prompt_ids
