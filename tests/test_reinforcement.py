"Laws of reinforcement: slopes are unbiased, runs repeat to the bit, and TRL has the same losses."
import copy
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import refused
from test_preference import Theirs, answer, quietly, shaken

from minigpt import load
from minigpt.checkpoint import fingerprint, load_checkpoint, save_checkpoint
from minigpt.config import ModelConfig
from minigpt.loss import IGNORE
from minigpt.model import GPT
from minigpt.optim import adamw_for
from minigpt.preference import stack, token_log_probs
from minigpt.reinforcement import (
    ActorCritic,
    Practice,
    RolloutBatch,
    Task,
    advantages,
    gae,
    k1,
    k2,
    k3,
    policy_loss,
    policy_objective,
    ppo_objective,
    roll_out,
)
from minigpt.training import train

KINDS = ["dapo", "grpo", "bnpo", "dr_grpo"]
each_kind = pytest.mark.parametrize("kind", KINDS)
END, MOST = 3, 2                 # of the tokens a, b, c and the end; answers of two at most
SMALL = ModelConfig(vocab_size=END + 1, context_length=12, n_layer=2, n_head=2, n_kv_head=1,
                    d_model=16, d_ff=24)


class Letters:
    vocab_size = END + 1
    def decode(self, ids): return "".join("abc"[i] for i in ids)


def build(seed=0, **change):
    torch.manual_seed(0)
    return shaken(GPT(replace(SMALL, **change)), 0.2, seed).eval()


# all there are: the end, a letter and the end, or two letters, cut
ANSWERS = [answer([1, 0], ids) for ids in (
    [END], *([i, END] for i in range(END)), *map(list, itertools.product(range(END), repeat=2)))]


def chances(model):
    "How likely each of them is, read off the logits one text at a time."
    rows = [model(torch.tensor([ids[:-1]]))[0].softmax(-1) for ids, _ in ANSWERS]
    return torch.stack([math.prod(p[i - 1, ids[i]] for i in range(2, len(ids)))
                        for p, (ids, _) in zip(rows, ANSWERS)])


def batch_of(model, examples, advantage, reference=None):
    "Attempts that this model has just written."
    answers = stack(examples)
    with torch.no_grad():
        old, ref = (m and token_log_probs(m, answers) for m in (model, reference))
    return RolloutBatch(answers, old, advantage, torch.zeros(1), [""] * len(examples), ref)


def slopes(model, loss):
    "Of every weight, in one row."
    found = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True,
                                allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in found])


def random(*shape, seed=0, dtype=None):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def close(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=1e-4)


# --- advantages

ROWS = torch.tensor([[1.0, 0, 0, 0], [3.0, 5, -1, 1], [2.0, 2, 2, 2]])


def test_each_baseline_by_hand():
    group = torch.tensor([[0.75, -0.25, -0.25, -0.25], [1, 3, -3, -1], [0, 0, 0, 0]])
    others = [[x - sum(row[:i] + row[i + 1:]) / 3 for i, x in enumerate(row)]
              for row in ROWS.tolist()]
    deviation = torch.tensor([[0.5], [math.sqrt(20 / 3)], [0]])
    for baseline, expected in {"none": ROWS, "mean": ROWS - 17 / 12, "group": group,
                               "others": torch.tensor(others),
                               "grpo": group / (deviation + 1e-4)}.items():
        close(advantages(ROWS, baseline), expected)
    assert torch.equal(advantages(ROWS), advantages(ROWS, "grpo"))
    assert advantages(ROWS[:, :1], "mean").tolist() == [[-1], [1], [0]]
    assert advantages(ROWS[:, :1], "none").tolist() == [[1], [3], [2]]
    with refused("baseline='best'", "none, mean, group, others, grpo"):
        advantages(ROWS, "best")


@pytest.mark.parametrize("baseline", ["group", "others", "grpo"])
def test_a_groups_advantages_add_up_to_nothing(baseline):
    close(advantages(random(20, 5), baseline).sum(dim=1), torch.zeros(20))
    close(advantages(random(20, 5) + 3, baseline), advantages(random(20, 5), baseline), 1e-4)
    for n in (7, 8, 12):                                         # not even where a mean is rounded
        alike = torch.tensor([1.0, 0.0, -3.0, 0.1, 0.7, 123.456])[:, None].expand(-1, n)
        assert not advantages(alike, baseline).any()
    for make in (lambda: advantages(ROWS[:, :1], baseline),
                 lambda: practice(build(), group=1, baseline=baseline)):
        with refused("a group of 1", "group=2"):
            make()


@pytest.mark.parametrize("gamma", [0.9, 1.0])
@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
def test_gae_is_its_double_sum(lam, gamma):
    "Rows begin and end anywhere; one has a gap, one has nothing."
    rewards, values = np.random.default_rng(0).normal(size=(2, 6, 9))
    ends = np.array([(0, 9), (2, 9), (0, 4), (3, 4), (1, 8), (5, 5)])
    counts = (np.arange(9) >= ends[:, :1]) & (np.arange(9) < ends[:, 1:])
    counts[4, 3:5] = False
    expected, to_come = np.zeros((2, 6, 9))
    for b in range(6):
        places = np.flatnonzero(counts[b]).tolist()
        value = dict(zip([None, *places], [0.0, *values[b, places]]))
        for i, t in enumerate(places):
            for j, (s, after) in enumerate(zip(places[i:], [*places[i + 1:], None])):
                surprise = rewards[b, s] + gamma * value[after] - value[s]
                expected[b, t] += (gamma * lam) ** j * surprise
                to_come[b, t] += gamma ** j * rewards[b, s]
    found = gae(*map(torch.tensor, (rewards, values, counts)), gamma, lam).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-12)
    if lam == 1:
        np.testing.assert_allclose(found, (to_come - values) * counts, atol=1e-12)


# --- attempts

PROMPTS = [[1, 0], [2, 2, 2, 1, 0], [0]]


def tasks_of(reward=lambda text: "a" in text):
    return [Task(prompt, reward) for prompt in PROMPTS]


def roll(seed=0, group=5, tasks=None, **change):
    return roll_out(build(**change), Letters(), tasks or tasks_of(), group, END, 6, seed)


def test_attempts_repeat_to_the_bit():
    tasks = [Task(prompt, lambda text, i=i: 10 * i + ("a" in text))
             for i, prompt in enumerate(PROMPTS)]
    one, again, other = (roll(seed, tasks=tasks) for seed in (0, 0, 1))
    assert one.examples == again.examples and torch.equal(one.rewards, again.rewards)
    assert one.texts == again.texts != other.texts and len(set(one.texts)) > 5
    assert one.rewards.shape == (3, 5) and one.rewards.dtype == torch.float32
    expected = [10 * (i // 5) + ("a" in text) for i, text in enumerate(one.texts)]
    assert one.rewards.flatten().tolist() == expected


def test_the_end_counts_where_an_answer_ended_and_is_not_invented():
    rolled, ways = roll(group=60, context_length=9), set()
    for i, (example, text) in enumerate(zip(rolled.examples, rolled.texts)):
        prompt = PROMPTS[i // 60]
        n, ended = len(prompt), example.ids[-1] == END
        said, most = example.ids[n:], min(6, 9 + 1 - n)          # the context's end cuts too
        assert example.ids[:n] == prompt and END not in said[:-1]
        assert example.learn == [False] * n + [True] * len(said)
        assert Letters().decode(said[:-1] if ended else said) == text
        assert len(text) < most if ended else len(text) == most
        ways.add((n, ended))
    assert len(ways) == 6


def test_answers_are_drawn_as_often_as_they_are_likely():
    "At temperature 1: over the 13 answers that there are, chi-square with 12 degrees."
    n = 4000
    p = chances(build()).detach().numpy()
    drawn = roll_out(build(), Letters(), tasks_of()[:1], n, END, MOST).examples
    counts = np.array([drawn.count(example) for example in ANSWERS])
    assert p.sum() == pytest.approx(1, abs=1e-5) and counts.sum() == n and (p * n > 5).all()
    assert ((counts - n * p) ** 2 / (n * p)).sum() < 40


def test_neighbours_and_fillers_change_no_chance():
    examples = roll().examples
    for row, example in zip(token_log_probs(build(), stack(examples)), examples):
        alone = token_log_probs(build(), stack([example]))[0]
        close(row[:len(alone)], alone, 1e-6)
        assert not row[len(alone):].any()


def test_an_answer_may_fill_the_context():
    critic = ActorCritic(build(context_length=9))
    batch = practice(critic.policy, critic=critic, max_tokens=9)[0]
    assert batch.answers.inputs.shape[1] == 10 and batch.counts[:, 8].any()
    for loss, _ in (policy_objective()(critic.policy, batch), ppo_objective()(critic, batch)):
        assert loss.isfinite()


@pytest.mark.parametrize("reward", [
    math.nan, math.inf, -math.inf, None, "1", [1.0], -1e39, pytest.param(10**400, id="10**400")])
def test_a_reward_that_is_no_number_is_refused(reward):
    with refused("the reward of '", repr(reward)[:40], "finite number"):
        roll(tasks=tasks_of(lambda _: reward))


def test_other_rewards_are_taken_and_no_tasks_are_not():
    for reward in (True, 3, -0.5):
        found = roll(tasks=tasks_of(lambda _, r=reward: r)).rewards
        assert torch.equal(found, torch.full((3, 5), float(reward)))
    for make in (lambda: roll_out(build(), Letters(), [], 2, END), lambda: practice(build(), [])):
        with refused("no tasks", "at least one"):
            make()


# --- estimates

def test_reinforce_and_leave_one_out_are_unbiased():
    "Over all pairs of answers: `others` finds the slope of the mean reward, `group` half of it."
    model, worth, objective = build(), random(13), policy_objective("dr_grpo", max_tokens=MOST)
    p = chances(model)
    exact, p = slopes(model, (p * worth).sum()), p.detach()
    loss, _ = objective(model, batch_of(model, ANSWERS, 13 * p * worth))
    close(slopes(model, -MOST * loss), exact)
    rewards, often = torch.cartesian_prod(worth, worth), torch.cartesian_prod(p, p).prod(1)
    rows = [e for pair in itertools.product(ANSWERS, repeat=2) for e in pair]
    for baseline, share in (("none", 1), ("others", 1), ("group", 0.5)):
        weighted = 169 * often[:, None] * advantages(rewards, baseline)
        loss, _ = objective(model, batch_of(model, rows, weighted.flatten()))
        close(slopes(model, -MOST * loss), share * exact)
    assert exact.norm() > 0.1


def test_k1_and_k3_are_right_on_average_and_k2_is_not():
    p, q = (random(5, seed=s, dtype=torch.float64).log_softmax(0) for s in (0, 1))
    exact = (p.exp() * (p - q)).sum().item()
    mean = {k: (p.exp() * k(p, q)).sum().item() for k in (k1, k2, k3)}
    assert mean[k1] == pytest.approx(exact) == mean[k3] and abs(mean[k2] / exact - 1) > 0.05
    assert k3(p, q).min() > 0 and k2(p, q).min() > 0 > k1(p, q).min()
    by_one = [k(p, p + 1)[0].item() for k in (k1, k2, k3)]
    assert not k3(p, p).any() and by_one == pytest.approx([-1, 0.5, math.e - 2])


# --- the loss

@pytest.mark.parametrize("ratio, advantage, high, flat", [
    (1.5, 1, None, True), (1.5, -1, None, False), (0.5, -1, None, True), (0.5, 1, None, False),
    (1.1, 1, None, False), (0.9, -1, None, False), (1.3, 1, 0.4, False), (1.5, 1, 0.4, True),
    (0.7, -1, 0.4, True)])
def test_a_ratio_beyond_the_clip_pays_no_more(ratio, advantage, high, flat):
    "The slope is that of ratio * advantage, or none."
    new = torch.tensor([[math.log(ratio)]], requires_grad=True)
    loss = policy_loss(new, torch.zeros(1, 1), torch.tensor([float(advantage)]),
                       torch.tensor([[True]]), clip=0.2, clip_high=high)
    slope, = torch.autograd.grad(loss, new)
    assert slope.item() == pytest.approx(0 if flat else -ratio * advantage)
    edge = 0.8 if ratio < 1 else 1.2 if high is None else 1 + high
    assert loss.item() == pytest.approx(-advantage * (edge if flat else ratio))


@pytest.mark.parametrize("kind, mean, share", [
    ("dapo", -4 / 4, 1), ("bnpo", -4 / 4, 1), ("grpo", (-7 + 1) / 2, 1), ("dr_grpo", -4 / 10, 0.4)])
def test_four_means_by_hand(kind, mean, share):
    "An answer of one token, advantage 7, and one of three, advantage -1; a fee of 3 for ln 2."
    counts = torch.tensor([[True, False, False], [True, True, True]])
    find = lambda a, counts=counts, **fee: policy_loss(
        torch.zeros(2, 3), torch.zeros(2, 3), a, counts, kind, max_tokens=5, **fee).item()
    a, away = torch.tensor([7.0, -1.0]), torch.full((2, 3), math.log(2))
    assert find(a) == find(a[:, None].expand(2, 3)) == find(a, reference=away) \
        == pytest.approx(mean)
    assert find(a, reference=away, beta=3.0) == pytest.approx(mean + 3 * share * (1 - math.log(2)))
    assert find(a, counts=torch.zeros_like(counts)) == 0
    with refused("kind='ppo'", "dapo, grpo, bnpo, dr_grpo"):
        policy_loss(away, away, a, counts, "ppo")


@each_kind
@pytest.mark.parametrize("by_place, beta", [(False, 0.0), (True, 0.0), (False, 0.3)])
def test_rows_that_teach_nothing_are_left_out_and_nothing_changes(kind, by_place, beta):
    policy, a, seen = shaken(build(), 0.05, 1), random(13) * (torch.arange(13) % 3 > 0), []
    batch = batch_of(build(), ANSWERS, a[:, None] * torch.arange(4) if by_place else a, build(2))
    policy.blocks[0].register_forward_hook(lambda m, i, o: seen.append(len(i[0])))
    found, n = policy_objective(kind, 0.2, None, beta, MOST)(policy, batch)
    new = token_log_probs(policy, batch.answers)
    expected = policy_loss(new, batch.old, batch.advantage, batch.counts, kind, 0.2, None, MOST,
                           batch.reference, beta)
    assert seen == [13 if beta else 8, 13] and n == int(batch.counts.sum()) == 1 + 2 * 12
    close(found, expected, 1e-6)
    close(slopes(policy, found), slopes(policy, expected), 1e-6)
    assert slopes(policy, found).norm() > 0.01


def test_no_advantages_at_all_are_no_slope_and_no_crash():
    policy = build()
    loss, n = policy_objective()(policy, batch_of(policy, ANSWERS, torch.zeros(13)))
    assert loss.item() == 0 and n == 25 and not slopes(policy, loss).any()
    optimizers = adamw_for(policy, 0.01, weight_decay=0.0)
    steps = list(train(policy, practice(policy, tasks_of(lambda _: 1)), optimizers, 2,
                       objective=policy_objective()))
    assert [(s.loss, s.grad_norm) for s in steps] == [(0, 0)] * 2
    assert all(map(torch.equal, policy.parameters(), build().parameters()))
    policy.embedding.weight.requires_grad_(False)                # as beneath an adapter
    policy_objective()(policy, batch_of(policy, ANSWERS, torch.zeros(13)))[0].backward()


def with_old(batch, policy):
    return replace(batch, old=token_log_probs(policy, batch.answers).detach())


@each_kind
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_a_single_step_is_that_with_the_probabilities_of_the_writing(kind, beta):
    "They are those of the step itself, so they are not calculated twice: the ratios are 1."
    policy = build()
    batch = practice(policy, reference=build(1))[0]
    assert batch.old is None and batch.advantage.any() and not batch.advantage.all()
    found, n = policy_objective(kind, 0.2, None, beta)(policy, batch)
    expected, same = policy_objective(kind, 0.2, None, beta)(policy, with_old(batch, policy))
    close(found, expected, 1e-6)
    close(slopes(policy, found), slopes(policy, expected), 1e-6)
    assert n == same and slopes(policy, found).norm() > 0.01


def test_a_single_step_with_a_critic_is_that_with_the_probabilities_of_the_writing():
    critic = ActorCritic(build())
    torch.nn.init.normal_(critic.head.weight)
    batch = practice(critic.policy, critic=critic, group=1, n_tasks=16)[0]
    found, expected = (ppo_objective()(critic, b)[0]
                       for b in (batch, with_old(batch, critic.policy)))
    assert batch.old is None
    close(found, expected, 1e-6)
    close(slopes(critic, found), slopes(critic, expected), 1e-6)


# --- practice

def practice(policy, tasks=None, **how):
    how = {"n_tasks": 4, "group": 4, "max_tokens": 4, **how}
    return Practice(policy, Letters(), tasks_of() if tasks is None else tasks, END, **how)


def flat(batch):
    tensors = vars(batch.answers) | {k: x for k, x in vars(batch).items()
                                     if isinstance(x, torch.Tensor)}
    return batch.texts, fingerprint(tensors)


def test_a_batch_depends_on_its_number_the_seed_and_the_weights():
    model = build().train()
    one, other = practice(model), practice(copy.deepcopy(model))
    backwards = {n: flat(other[n]) for n in reversed(range(4))}
    torch.manual_seed(1)
    assert all(flat(one[n]) == backwards[n] for n in range(4)) and model.training
    assert backwards[0] != backwards[1] not in (flat(practice(model, seed=1)[1]),
                                                flat(practice(build(1))[1]))
    shown = copy.deepcopy(one)
    with torch.no_grad():
        shown.policy.embedding.weight[0] *= 30                   # the weights at that moment
    assert flat(shown[0]) != backwards[0]
    kept = practice(shown.policy, updates=2)[0]
    close(kept.old, token_log_probs(shown.policy, kept.answers), 1e-6)
    assert kept.texts == shown[0].texts and shown[0].old is None
    assert {t.prompt[0] for n in range(9) for t in one.chosen(n)} == {0, 1, 2}
    assert one.chosen(0) != one.chosen(1) != practice(model, seed=1).chosen(1)
    alone = [practice(model, tasks_of()[:1], seed=seed) for seed in (0, 1)]
    assert alone[0][0].texts not in (alone[0][1].texts, alone[1][0].texts)
    with pytest.raises(TypeError):
        iter(one)


def test_updates_use_the_same_attempts_and_resuming_between_them_is_refused():
    batches, once = practice(build(), updates=4), practice(build())
    assert len({id(batches[n]) for n in range(4)}) == 1
    attempts = [flat(replace(batches[n], old=None)) for n in (0, 4, 7)]
    assert attempts[0] == flat(once[0]) != attempts[1] and attempts[2] == flat(once[1])
    with refused("step 2 uses attempts that step 0 drew", "a multiple of updates=4"):
        practice(build(), updates=4)[2]


def test_a_batch_holds_what_a_step_needs():
    model, reference = build(), build(1)
    batch = practice(model, reference=reference, baseline="others", updates=2)[0]
    assert torch.equal(batch.counts, batch.answers.targets != IGNORE) and batch.returns is None
    assert torch.equal(batch.advantage, advantages(batch.rewards, "others").flatten())
    assert batch.rewards.shape == (4, 4) and len(batch.texts) == 16
    close(batch.reference, token_log_probs(reference, batch.answers).detach(), 1e-6)
    assert not batch.old.requires_grad and flat(batch.to("cpu")) == flat(batch)


def test_a_critics_advantages_are_those_of_a_reward_at_the_end():
    critic = ActorCritic(build())
    torch.nn.init.normal_(critic.head.weight)
    batch = practice(critic.policy, critic=critic, group=1, n_tasks=16, updates=2)[0]
    values, mine = critic.values(batch.answers).detach(), []
    for b, reward in enumerate(batch.rewards.flatten().tolist()):
        value = values[b, batch.counts[b]][None]
        paid = torch.zeros_like(value)
        paid[0, -1] = reward
        mine.append(gae(paid, value, torch.ones_like(value).bool())[0])
        close(batch.returns[b, batch.counts[b]], mine[-1] + value[0])
    mine = torch.cat(mine)
    close(batch.advantage[batch.counts], (mine - mine.mean()) / (mine.std(correction=0) + 1e-4))
    assert not batch.advantage[~batch.counts].any() and batch.rewards.unique().tolist() == [0, 1]
    moved = shaken(critic, 0.05, 3)
    off = (moved.values(batch.answers) - batch.returns)[batch.counts]
    expected = policy_loss(token_log_probs(moved.policy, batch.answers), batch.old, batch.advantage,
                           batch.counts, clip=0.1) + 0.7 * off.square().mean()
    loss, n = ppo_objective(0.1, 0.7)(moved, batch)
    close(loss, expected, 1e-6)
    assert n == len(mine)


@pytest.mark.parametrize("updates", [1, 3])
@pytest.mark.parametrize("how", ["grpo", "fee", "ppo"])
def test_a_killed_run_resumes_to_the_bit(tmp_path, how, updates):
    objective = ppo_objective() if how == "ppo" else policy_objective(beta=0.1 * (how == "fee"))

    def fresh():
        model = ActorCritic(build()) if how == "ppo" else build()
        more = {"critic": model} if how == "ppo" else {"reference": build()} if how == "fee" else {}
        batches = practice(getattr(model, "policy", model), updates=updates, seed=4, **more)
        return model.train(), batches, adamw_for(model, 0.01)

    go = lambda run, steps, first=0: [step.loss for step in train(
        *run, steps, first_step=first, objective=objective)]
    straight, stopped, resumed = fresh(), fresh(), fresh()
    expected, found = go(straight, 6), go(stopped, 3)
    path = save_checkpoint(tmp_path, 3, stopped[0], stopped[2])
    assert load_checkpoint(path, resumed[0], resumed[2])["step"] == 3
    found += go(resumed, 6, 3)
    weights = lambda run: fingerprint(dict(run[0].named_parameters()))
    assert found == expected and weights(resumed) == weights(straight) != weights(stopped)


@pytest.mark.parametrize("how", [*KINDS, "ppo"])
def test_practice_raises_the_reward(how):
    "1 for an answer that begins with c; of PPO's critic, to expect it."
    model = ActorCritic(build()) if how == "ppo" else build()
    ours, more = (model.policy, {"critic": model}) if how == "ppo" else (model, {})
    batches, rewards = practice(ours, tasks_of(lambda text: text.startswith("c")), **more), []
    for _ in train(model.train(), batches, adamw_for(model, 0.01, weight_decay=0.0), 40,
                   objective=ppo_objective() if how == "ppo" else policy_objective(how),
                   max_loss=math.inf):
        rewards.append(batches.newest.rewards.mean().item())
    assert rewards[0] < 0.2 and np.mean(rewards[-5:]) > 0.95
    if how == "ppo":
        last = batches.newest
        assert model.values(last.answers)[last.counts].mean().item() == pytest.approx(1, abs=0.2)


def test_an_actor_critic_begins_with_copies_and_expects_nothing():
    base, batch = build(), stack(ANSWERS)
    both = ActorCritic(base)
    assert torch.equal(both.values(batch), torch.zeros(13, 4))
    assert torch.equal(token_log_probs(both.policy, batch), token_log_probs(base, batch))
    owners = [{p.data_ptr() for p in m.parameters()} for m in (base, both.policy, both.body)]
    assert len(set.union(*owners)) == sum(map(len, owners))
    torch.nn.init.normal_(both.head.weight)
    for row, (ids, _) in zip(both.values(batch), ANSWERS):       # it sees what stands before
        each = [both.head(base.hidden(torch.tensor([ids[:t]]))[0, -1]) for t in range(1, len(ids))]
        close(row[:len(ids) - 1], torch.cat(each))
    assert ActorCritic(build().bfloat16()).values(batch).shape == (13, 4)


def test_one_token_has_an_advantage_with_a_critic():
    critic = ActorCritic(build())
    batch = practice(critic.policy, critic=critic, group=1, n_tasks=1, max_tokens=1)[0]
    assert batch.advantage.isfinite().all()


def test_what_cannot_be_practised_is_refused():
    with refused("the reference knows 5 tokens", "policy 4", "as it was before"):
        practice(build(), reference=build(vocab_size=5))
    with refused("the critic has another policy", "critic.policy"):
        practice(build(), critic=ActorCritic(build()))
    with pytest.raises(IndexError, match="no batch -1"):
        practice(build())[-1]
    batch = batch_of(build(), ANSWERS, torch.ones(13))
    with refused("beta=0.1 asks for a fee", "reference="):
        policy_objective(beta=0.1)(build(), batch)
    with refused("no critic", "critic="):
        ppo_objective()(ActorCritic(build()), batch)
    for name in ("n_tasks", "group", "updates"):
        with refused(f"{name}=0", "whole number, at least 1"):
            practice(build(), **{name: 0})


# --- TRL

@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    trl = pytest.importorskip("trl", reason="pip install trl: the trainers of the ecosystem")
    pytest.importorskip("datasets")
    return Theirs(trl, load("chat")[1], tmp_path_factory.mktemp("grpo"))


def trainer_of(theirs, reward=lambda completions, **_: [0.0] * len(completions), **how):
    "Theirs, ready to calculate a loss."
    from datasets import Dataset
    from transformers import AutoTokenizer
    args = theirs.trl.GRPOConfig(
        str(theirs.folder / "out"), report_to="none", use_cpu=True, bf16=False, disable_tqdm=True,
        per_device_train_batch_size=8, num_generations=4, max_completion_length=7, **how)
    trainer = theirs.trl.GRPOTrainer(
        theirs.open("policy"), reward, args=args, train_dataset=Dataset.from_list(
            [{"prompt": "Who is"}, {"prompt": "Tell me about Abel, who"}]),
        processing_class=AutoTokenizer.from_pretrained(theirs.folder / "policy"))
    trainer.model.eval()
    return trainer


def in_their_order(batch, examples):
    "Their prompts end, and answers begin, in the same column."
    def table(rows, left=False):
        most = max(map(len, rows))
        return torch.tensor([[0] * (most - len(row)) * left + row + [0] * (most - len(row)) *
                             (not left) for row in rows])
    parts = [[[i for i, learn in zip(*e) if learn == said] for e in examples] for said in (0, 1)]
    ones = [[[1] * len(row) for row in part] for part in parts]
    old, reference = (table([row[counts].tolist() for row, counts in zip(x, batch.counts)])
                      for x in (batch.old, batch.reference))
    return {"prompt_ids": table(parts[0], True), "prompt_mask": table(ones[0], True),
            "completion_ids": table(parts[1]), "completion_mask": table(ones[1]),
            "advantages": batch.advantage, "old_per_token_logps": old,
            "ref_per_token_logps": reference, "num_items_in_batch": batch.counts.sum()}


@quietly
@pytest.mark.parametrize("high, beta", [(None, 0.0), (0.28, 0.0), (None, 0.3)],
                         ids=["plain", "higher", "with a fee"])
@each_kind
def test_trl_has_the_same_loss_and_the_same_gradients(theirs, tmp_path, kind, high, beta):
    "Random answers of any length, as another policy wrote them; two of them earned nothing."
    trainer = trainer_of(theirs, loss_type=kind, beta=beta, epsilon=0.2, epsilon_high=high,
                         use_bias_correction_kl=False)
    rng, policy = np.random.default_rng(0), copy.deepcopy(theirs.policy)
    ids = lambda most: rng.integers(policy.cfg.vocab_size, size=rng.integers(1, most + 1)).tolist()
    examples = [answer(ids(6), ids(7)) for _ in range(8)]
    batch = batch_of(shaken(policy, 0.01, 2), examples, torch.tensor(
        [1.5, -0.5, -0.5, 0.0, 2.0, -1.0, 0.0, -1.0]), theirs.reference)
    expected = trainer._compute_loss(trainer.model, in_their_order(batch, examples))
    expected.backward()
    loss, _ = policy_objective(kind, 0.2, high, beta, max_tokens=7)(policy, batch)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5) and abs(loss) > 1e-3
    theirs.same_gradients(policy, trainer.model, tmp_path)
    new = token_log_probs(policy, batch.answers).detach()
    whole = policy_loss(new, batch.old, batch.advantage, batch.counts, kind, 0.2, high, 7,
                        batch.reference, beta)
    assert whole.item() == pytest.approx(expected.item(), abs=1e-5)
    assert 0.1 < (((new - batch.old).exp() - 1).abs() > 0.2)[batch.counts].float().mean() < 0.9


@quietly
@pytest.mark.parametrize("scale, baseline", [("group", "grpo"), ("none", "group")])
def test_trl_gives_the_same_advantages(theirs, scale, baseline):
    "It writes eight answers of its own; their reward is what comes to hand."
    rewards = []
    def reward(completions, **_):
        rewards.extend(len(text) + 7.0 * ("x" in text) for text in completions)
        return rewards
    trainer = trainer_of(theirs, reward, scale_rewards=scale)
    rows = [row for row in trainer.train_dataset for _ in range(4)]
    found = trainer._generate_and_score_completions(rows)["advantages"]
    close(found, advantages(torch.tensor(rewards).view(2, 4), baseline).flatten(), 1e-4)
    assert len(rewards) == 8 and found.unique().numel() > 4
