"""Three typical wrong answers to each exercise, by notebook and number, each with the hint that it should get."""

LORA = "def lora(x, W, A, B, alpha, r):\n    return "
QUESTION = 'question = {"role": "user", "content": "What is the capital of Peru?"}\nrepaired = '
REPLY = '{"role": "assistant", "content": "Lima."}'
TURNS = """
messages = [
    {"role": "user", "content": "One?"},
    {"role": "assistant", "thinking": "First thought.", "content": "1."},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "thinking": "Second thought.", "content": "2."},
]
"""
SLOW = 'slow = """\nextends = "tiny"\n[train]\nlearning_rate = '
ATTENTION = 'attention_only = """\nextends = "tiny"\n[recipe]\nexpert_layers = []\n"""'

WRONG: dict[tuple[str, int], dict[str, str]] = {
    ("01_profiles", 0): {
        'mine = """\nextends = "tiny"\n[train]\nlearning_rat = 0.0035\n"""': "learning_rate",
        'mine = """\nextends = "tiny"\n[train]\nlearning_rate = 0.0035\nseed = 1\n"""': "train.seed differ too",
        'mine = """\nextends = "tiny"\n[train]\nlearning_rate = 0.035\n"""': "Half of tiny's is 0.0035",
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
        QUESTION + f"[[{{'role': 'user', 'content': 'Hi'}}, {REPLY}]] * 4": "Only the replies need repair",
    },
    ("03_measuring", 0): {
        "loss = -logits[position].softmax(-1)[ids[position]].log()": "Those before it are of position - 1",
        "loss = logits[position - 1].softmax(-1)[ids[position]]": "That is the probability",
        "loss = logits[position - 1].softmax(-1)[ids[position]].log()": "The sign",
    },
    ("03_measuring", 1): {
        "def agreement(replies):\n    return 100 * (replies.language == replies.detected).mean()": "is more than 1",
        "def agreement(replies):\n    return (replies.language == replies.detected).mean()": "asks for no language",
        "def agreement(replies):\n    return (replies.detected == 'English').mean()": "the share of English",
    },
    ("04_adapters", 0): {
        LORA + "x @ W.T + x @ A.T @ B.T": "The scale is missing",
        LORA + "x @ W.T + r / alpha * (x @ A.T @ B.T)": "upside down",
        LORA + "alpha / r * (x @ A.T @ B.T)": "The base is missing",
    },
    ("04_adapters", 1): {
        "trainable = 8 * 4 * 896": "That is the attention alone",
        "trainable = 8 * 4 * (896 + 640)": "Each layer has 4",
        "trainable = 4 * (896 + 4 * 640)": "r is missing",
    },
    ("04_adapters", 2): {
        f'prediction = 50\n{SLOW}2e-4\n"""': "Write 50% as 0.5",
        f'prediction = 0.5\n{SLOW}2e-3\n"""': "The learning rate is 0.002",
        f'prediction = 0.5\n{SLOW}2e-4\nseed = 1\n"""': "the learning rate alone should",
    },
    ("04_adapters", 3): {
        f'changes_most = "agreement"\n{ATTENTION}': "Larger divided by smaller",
        f'changes_most = "speed"\n{ATTENTION}': "Choose one of agreement",
        f'changes_most = "loss"\n{ATTENTION.replace("[]", "[0]")}': "layers [0] are still adapted",
    },
    ("05_reasoning", 0): {
        "misleading = int((~results.faithful).sum())\nlanguage = 'Italian'": "Some of those answers are wrong",
        "misleading = int((results.exact & results.faithful).sum())\nlanguage = 'Italian'": "Look for the others",
        "misleading = 3\nlanguage = 'Spanish'": "another language has more",
    },
}
