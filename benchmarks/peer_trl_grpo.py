"""TRL's GRPO on a tiny Llama: CPU seconds of each step. Prints one JSON line.

    python benchmarks/peer_trl_grpo.py FOLDER ROLLOUTS STEPS
    python benchmarks/peer_trl_grpo.py FOLDER          only writes the model, its tokenizer, the prompts and the reward

Prompts of 16 tokens, exactly 32 new ones, groups of 8, one thread, float32; whatever FOLDER lacks is written first, so
that another program can load the same files.
"""

import itertools
import json
import os
import random
import statistics
import sys
import time
import warnings
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRL_EXPERIMENTAL_SILENCE": "1"}
warnings.filterwarnings("ignore")

import torch  # noqa: E402

SYMBOLS = ["<pad>", "<eos>", *"0123456789+-=*() abcdefghijklmnopqrstuvw"]
NEW, GROUP = 32, 8
REWARD = '''"""How many ones a completion has."""


def score(prompt, completion, row):
    return float(completion.count("1"))
'''


def write(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({symbol: i for i, symbol in enumerate(SYMBOLS)}, unk_token="<pad>"))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>", padding_side="left")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(SYMBOLS), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        intermediate_size=256, max_position_embeddings=128, pad_token_id=0, eos_token_id=1, bos_token_id=None,
        tie_word_embeddings=False, rms_norm_eps=1e-6,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    draw = random.Random(0).randint
    prompts = [f"{draw(10**5, 10**6 - 1)}+{draw(10**7, 10**8 - 1)}=" for _ in range(4096)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    (folder / "reward.py").write_text(REWARD)


def main() -> None:
    folder = Path(sys.argv[1])
    if not (folder / "reward.py").exists():
        write(folder)
    if len(sys.argv) == 2:
        return
    rollouts, steps = map(int, sys.argv[2:])

    import transformers
    import trl
    from datasets import Dataset
    from transformers import AutoTokenizer, LlamaForCausalLM, TrainerCallback

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    marks = []

    class Clock(TrainerCallback):
        def on_step_end(self, *args: object, **options: object) -> None:
            marks.append(time.process_time())

    def ones(completions: list[str], **options: object) -> list[float]:
        return [float(text.count("1")) for text in completions]

    rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    trainer = trl.GRPOTrainer(
        model=LlamaForCausalLM.from_pretrained(folder),
        reward_funcs=ones,
        args=trl.GRPOConfig(
            output_dir=str(folder / "trl"), per_device_train_batch_size=rollouts, num_generations=GROUP,
            max_completion_length=NEW, max_steps=steps, logging_steps=1, report_to="none", use_cpu=True, bf16=False,
            gradient_checkpointing=False, learning_rate=1e-3, lr_scheduler_type="constant", temperature=1.0,
            save_strategy="no", disable_tqdm=True, generation_kwargs={"min_new_tokens": NEW},
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder),
        callbacks=[Clock()],
    )  # fmt: skip
    trainer.train()
    spent = [b - a for a, b in itertools.pairwise(marks[1:])]  # the first two steps warm up
    versions = {"trl": trl.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
    print(json.dumps({"tokens": rollouts * NEW, "cpu": statistics.median(spent), "versions": versions}))


if __name__ == "__main__":
    main()
