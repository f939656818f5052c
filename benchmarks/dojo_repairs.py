"""Repairs of the dojo's broken scripts: right ones besides the original, and wrong ones that tempt.

Each is a tuple of edits of the broken script. They lie here, so that the package does not hold the
answers beside the questions.
"""
RATE = "RATE, BATCH, MICRO = "
STEPS = 'int(os.environ.get("STEPS", 300))'
LOGGED = 'report["loss"] += loss.item()'
LOOK = ('        if n % 50 == 0 or n == STEPS - 1:\n'
        '            report["validation"] = validate()\n', "")
CLIP = "clip_gradients(model.parameters(), 1.0)"
PLAN = "trapezoid(n, STEPS, STEPS // 10, STEPS // 2)"
SUM = 'cross_entropy(model(inputs), targets, "sum") / sum(len(row) - 1 for row in rows)'
MASKED = "ids.masked_fill(~is_text, IGNORE)"
STEP, CLEAR = "        optimizer.step()\n", "        optimizer.zero_grad()\n"
BATCH = "            inputs, targets = make_batch"
MEAN = "cross_entropy(model(inputs), targets)"


def rate(old: str, new: str) -> tuple[str, str]:
    "Another peak rate."
    return RATE + old, RATE + new


def smaller_clip(limit: str) -> tuple[str, str]:
    return CLIP, f"clip_gradients(model.parameters(), {limit})"


RIGHT = {
    "rate too low": [(rate("0.0001", "0.007"),)],
    "targets not shifted": [((MASKED + "[:, :-1]", MASKED + ".roll(-1, 1)[:, :-1]"),)],
    "schedule stepped per micro-batch": [
        (("            schedule.step()\n", ""), ("schedule.get_last_lr()[0] / RATE", PLAN),
         (STEP, "        for group in optimizer.param_groups:\n"
          '            group["lr"] = RATE * report["lr"]\n' + STEP))],
    "initialisation ten times too large": [
        (("std=0.2)",
          "std=0.2)\nfor p in model.parameters():\n    p.data *= 0.1 ** (p.ndim - 1)"),)],
    "16-bit overflow without a scaler": [(("2.0 ** 21", "2.0 ** 8"),),
                                         (("torch.float16", "torch.bfloat16"),)],
    "rate too high": [(rate("0.1", "0.007"),)],
    "a part left out of the optimizer": [
        (("model.blocks.parameters()", "[*model.blocks.parameters(), model.embedding.weight, "
          "*model.norm.parameters()]"),)],
    "accumulation not divided": [
        ((MEAN + "\n", MEAN + " / MICRO\n"),)],
    "sorted documents": [
        (("end = tokenizer", "random.Random(SEED).shuffle(documents)\nend = tokenizer"),)],
    "future leaking through the mask": [
        (("torch.ones(scores.shape[-2:], dtype=torch.bool).triu(2)",
          "~torch.ones(scores.shape[-2:], dtype=torch.bool).tril()"),)],
    "gradients not cleared": [
        ((STEP, STEP + CLEAR),)],
    "shifted twice": [
        ((f"ids[:, :-2], {MASKED}[:, 2:]", f"ids[:, :-1], {MASKED}.roll(-1, 1)[:, :-1]"),)],
    "validation inside training": [
        (("in (documents, documents[:48])", "in (documents[48:], documents[:48])"),)],
    "no warm-up": [(("STEPS, 0, STEPS // 2", "STEPS, STEPS // 6, STEPS // 2"),)],
    "padding counted in the loss": [
        (("return ids[:, :-1], ids[:, 1:]", "return ids[:, :-1], " + MASKED + "[:, 1:]"),)],
    "train and inference tokenized differently": [
        (("[end, *tokenizer.encode(\" \".join(text.split())), end]",
          "encode_documents(tokenizer, [text]).tolist()"),
         ("from minigpt.loss", "from minigpt.data import encode_documents\nfrom minigpt.loss"))],
    "mask after softmax": [
        (("        weights = scores.softmax(dim=-1).masked_fill(future, 0)\n",
          "        weights = scores.softmax(dim=-1).masked_fill(future, 0)\n"
          "        weights = weights / weights.sum(dim=-1, keepdim=True)\n"),)],
    "clip after the step": [
        ((STEP + f'        report["grad_norm"] = {CLIP}\n',
          '        report["grad_norm"] = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)'
          ".item()\n" + STEP),)],
}
WRONG = {
    "rate too low": [((STEPS, STEPS + " * 2"),), ((PLAN, "1.0"),), (smaller_clip("10.0"),)],
    "targets not shifted": [
        (rate("0.01", "0.001"),), ((LOGGED, LOGGED + " + 1.0"),),
        (("ids[:, :-1], " + MASKED, "ids[:, 1:], " + MASKED),)],
    "schedule stepped per micro-batch": [
        ((PLAN, f"max(0.1, {PLAN})"),), (rate("0.01", "0.02"),),
        (("schedule.get_last_lr()[0] / RATE", PLAN),)],
    "initialisation ten times too large": [
        (rate("0.01", "0.004"),), ((PLAN, PLAN.replace("// 10", "// 3")),),
        ((LOGGED, 'report["loss"] += min(loss.item(), 3.3)'),)],
    "16-bit overflow without a scaler": [
        (("2.0 ** 21", "2.0 ** 30"),), (smaller_clip("0.01"),),
        ((LOGGED, 'report["loss"] += loss.nan_to_num(2.0).item()'),)],
    "rate too high": [
        (smaller_clip("0.1"),), ((PLAN, PLAN.replace("// 10", "// 3")),),
        (("n_layer=2)\n", "n_layer=2, std=0.002)\n"),)],
    "a part left out of the optimizer": [
        (rate("0.01", "0.03"),),
        (("model.blocks.parameters()", "[*model.blocks.parameters(), *model.norm.parameters()]"),),
        (("model.blocks.parameters()", "[*model.blocks.parameters(), model.embedding.weight]"),)],
    "accumulation not divided": [
        ((LOGGED, LOGGED + " / MICRO"),), (rate("0.01", "0.005"),),
        ((MEAN + "\n", MEAN + " / 4\n"),)],
    "sorted documents": [
        (rate("0.01", "0.003"),), (('["note", "questions"]', '["questions", "questions"]'),),
        (("in (documents, unseen)", "in (documents, unseen[24:])"),)],
    "future leaking through the mask": [
        ((".triu(2)", ".triu(0)"),), ((".triu(2)", ".triu(2 if torch.is_grad_enabled() else 1)"),),
        ((STEPS, STEPS + " // 2"),)],
    "gradients not cleared": [
        (rate("0.01", "0.003"),),
        ((BATCH, "            model.zero_grad()\n" + BATCH),),
        (("        for m in range",
          "        if n % 10 == 0:\n            model.zero_grad()\n        for m in range"),)],
    "shifted twice": [
        (rate("0.01", "0.005"),), (("n_layer=2, n_head", "n_layer=3, n_head"),),
        (("[:, 2:]", "[:, :-2]"),)],
    "validation inside training": [
        (("documents[:48])", "random.sample(documents, 48))"),), (LOOK,),
        (("= validate()", "= 1.5 * validate()"),)],
    "no warm-up": [
        (("STEPS, 0, STEPS // 2", "STEPS, 1, STEPS // 2"),), (smaller_clip("0.3"),),
        (("STEPS, 0, STEPS // 2", "STEPS, 0, STEPS"),)],
    "padding counted in the loss": [
        ((LOGGED, LOGGED + " * 1.4"),),
        ((MEAN + " / MICRO", SUM),), (LOOK,)],
    "train and inference tokenized differently": [
        (("train_tokenizer(documents,",
          'train_tokenizer([" ".join(d.split()) for d in documents],'),),
        (('" ".join(text.split())', "text.lower()"),),
        (('" ".join(text.split())', r'"\n".join(text.split())'),)],
    "mask after softmax": [
        (("scores.softmax(dim=-1).masked_fill(future, 0)",
          "scores.masked_fill(future, 0).softmax(dim=-1)"),),
        (("scores.softmax(dim=-1)", "scores.masked_fill(future, -1.0).softmax(dim=-1)"),),
        (("scores.softmax(dim=-1)", "scores.softmax(dim=-1).detach()"),)],
    "clip after the step": [
        (smaller_clip("0.1"),), (rate("0.01", "0.005"),), ((CLIP, f"min(1.0, {CLIP})"),)],
}
