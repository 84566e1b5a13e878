"""Three typical wrong answers to each exercise, by notebook and number, each with the hint that it should get."""

AGREEMENT = "def agreement(replies):\n    return "
LORA = "def lora(x, W, A, B, alpha, r):\n    return "
QUESTION = 'question = {"role": "user", "content": "What is the capital of Peru?"}\nrepaired = '
REPLY = '{"role": "assistant", "content": "Lima."}'
THOUGHT = '{"role": "assistant", "content": "<think>An easy one. Lima.</think>"}'
TURNS = """
messages = [
    {"role": "user", "content": "One?"},
    {"role": "assistant", "thinking": "First thought.", "content": "1."},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "thinking": "Second thought.", "content": "2."},
]
"""
EPOCHS = 'mine = """\nextends = "tiny"\n[train]\nnum_train_epochs = '
SLOW = 'slow = """\nextends = "tiny"\n[train]\nlearning_rate = '
ATTENTION = 'attention_only = """\nextends = "tiny"\n[recipe]\nexpert_layers = []\n"""'

WRONG: dict[tuple[str, int], dict[str, str]] = {
    ("01_profiles", 0): {
        EPOCHS + '2\nseed = 1\n"""': "train.seed should be as in tiny",
        EPOCHS + '3\n"""': "It trains for 3 epochs",
        EPOCHS.replace("[train]", "") + '2\n"""': "belongs in the section [train]",
    },
    ("02_conversations", 0): {
        TURNS + 'survives = "First thought."': "not in the rendered text",
        TURNS.replace(', "thinking": "Second thought."', "") + 'survives = "x"': "goes beside content",
        TURNS + "messages = messages[:2]": "Two turns are user, assistant, user, assistant",
    },
    ("02_conversations", 1): {
        "rows_cut = 233\ntokens_lost = 26216": "exactly 180 tokens loses nothing",
        "rows_cut = 221\ntokens_lost = int(lengths['tokens'][lengths['tokens'] > 180].sum())": "keeps its first 180",
        "rows_cut = 221\ntokens_lost = int((lengths['tokens'] - 180).sum())": "cannot lose less than nothing",
    },
    ("02_conversations", 2): {
        QUESTION + f"[[question, {REPLY}]] * 3": "a row that is deleted teaches nothing",
        QUESTION + f"[[question, {REPLY}]] * 3 + [[question]]": "Row 3",
        QUESTION
        + f"[[question, {REPLY}]] * 3 + [[question, {THOUGHT}]]": "after </think>, the reply also has to answer",
    },
    ("03_measuring", 0): {
        "loss = -logits[position].softmax(-1)[ids[position]].log()": "Which row was made before?",
        "loss = logits[position - 1].softmax(-1)[ids[position]]": "That is the probability",
        "loss = logits[position - 1].softmax(-1)[ids[position]].log()": "The sign",
    },
    ("03_measuring", 1): {
        AGREEMENT + "100 * (replies.language == replies.detected).mean()": "is this a count, or a percentage?",
        AGREEMENT + "(replies.language == replies.detected).mean()": "asks for no language",
        AGREEMENT + "(replies.detected == 'English').mean()": "the share of English",
    },
    ("04_adapters", 0): {
        LORA + "x @ W.T + x @ A.T @ B.T": "The scale is missing",
        LORA + "x @ W.T + r / alpha * (x @ A.T @ B.T)": "upside down",
        LORA + "alpha / r * (x @ A.T @ B.T)": "The base is missing",
    },
    ("04_adapters", 1): {
        "trainable = 2 * 4 * 896": "That is the attention alone",
        "trainable = 2 * (4 * 896 + 2 * 640)": "there are 4 in each",
        "trainable = 4 * 896 + 2 * 4 * 640": "r is missing",
    },
    ("04_adapters", 2): {
        f'prediction = 50\n{SLOW}2e-4\n"""': "Write 50% as 0.5",
        f'prediction = 0.5\n{SLOW}2e-3\n"""': "The learning rate is 0.002",
        f'prediction = 0.5\n{SLOW}2e-4\nseed = 1\n"""': "Change the learning rate alone",
    },
    ("04_adapters", 3): {
        f'changes_most = "agreement"\n{ATTENTION}': "there is no need to train again",
        f'changes_most = "speed"\n{ATTENTION}': "Choose one of agreement",
        f'changes_most = "loss"\n{ATTENTION.replace("[]", "[0]")}': "layers [0] are still adapted",
    },
    ("05_reasoning", 0): {
        "consistent = int((~results.exact).sum())\nlanguage = 'Italian'": "In some of them the reasoning",
        "consistent = ~results.exact & results.faithful\nlanguage = 'Italian'": "one number is asked for",
        "consistent = 1\nlanguage = 'German'": "elsewhere further",
    },
}
