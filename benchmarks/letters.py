"""The ladder of the models of letters, three seeds each: bits a letter on held-out names.

python -m benchmarks.letters
"""
import statistics

import torch

from minigpt.config import ModelConfig
from minigpt.model import GPT
from minigpt.neural_letters import LetterMLP, bits_per_letter, three_piles, train_letters
from minigpt.recurrent import Recurrent, name_bits, name_rows, train_names

SEEDS = range(3)
RATES = {"rnn": 0.01, "gru": 0.01, "lstm": 0.02, "gpt": 0.005}     # best of three by validation


def net_bits(train: list[str], test: list[str], seed: int) -> float:
    "The net of five letters, as its chapter trains it."
    model = LetterMLP(rng=torch.Generator().manual_seed(seed))
    for _ in train_letters(model, train, 8000, lr=1.5, batch_size=256, seed=seed):
        pass
    return bits_per_letter(model, test)


def memory_bits(kind: str, train: list[str], test: list[str], seed: int) -> float:
    "A recurrent net, or a small GPT."
    torch.manual_seed(seed)
    longest = max(name_rows(names)[0].shape[1] for names in (train, test))
    model = (GPT(ModelConfig(28, context_length=longest, n_layer=2, n_head=4, d_model=64, d_ff=128))
             if kind == "gpt" else Recurrent(kind, rng=torch.Generator().manual_seed(seed)))
    for _ in train_names(model, train, 700, RATES[kind], seed=seed):
        pass
    return name_bits(model, test)


def main() -> None:
    train, _, test = three_piles()
    rungs = {"net, five letters": [net_bits(train, test, seed) for seed in SEEDS]}
    rungs |= {kind: [memory_bits(kind, train, test, seed) for seed in SEEDS] for kind in RATES}
    for name, bits in rungs.items():
        print(f"{name:18}", "  ".join(f"{b:.3f}" for b in bits),
              f"  mean {statistics.mean(bits):.2f}, deviation {statistics.stdev(bits):.2f}")


if __name__ == "__main__":
    main()
