"""What people get wrong, and the line that each of them sees: the table that test_bad_inputs runs through."""

import json
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import pyarrow
from pyarrow import parquet as pq

from ftlib import profiles
from ftlib.model import publish

EXPLORE = ("run", "02_explore_dataset", "--profile", "mine.toml")
TRAIN = ("run", "04_train_lora", "--profile", "mine.toml")
PUSH = ("push", "--profile", "mine.toml")

QUESTION = {"role": "user", "content": "What is 2 plus 3?"}
ANSWER = {"role": "assistant", "content": "2 plus 3 is 5."}
GOOD = [{"messages": [{"role": "user", "content": f"What is {n} plus 3?"}, ANSWER]} for n in range(8)]


@dataclass(frozen=True)
class Case:
    """One mistake."""

    name: str  # what is wrong
    message: tuple[str, ...]  # parts of the line that a person sees, in order
    command: tuple[str, ...] = EXPLORE  # what they typed after `ftlib`
    profile: str = ""  # their mine.toml, below `extends = "tiny"`
    files: dict[str, str | bytes] = field(default_factory=dict)  # beside it
    given: str = ""  # to papermill, as Python
    circumstance: tuple[Any, ...] = ()  # a method of the test's `World`, and its arguments


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def parquet(columns: list[str], *values: Any) -> bytes:
    """A Parquet file of one row."""
    sink = pyarrow.BufferOutputStream()
    pq.write_table(pyarrow.Table.from_arrays([pyarrow.array([value]) for value in values], names=columns), sink)
    return sink.getvalue().to_pybytes()


def own(file: str, content: str | bytes, *message: str, name: str = "", extra: str = "held_out_share = 0.5") -> Case:
    """A profile of a local file, and what is wrong with the file."""
    profile = f"[data]\ndataset = {json.dumps(file)}\n{extra}\n"  # which is TOML, too
    return Case(name or f"{file}: {message[-1]}", message, profile=profile, files={file: content})


def row(name: str, wrong: Any, *message: str) -> Case:
    """A bad row, the third of its file."""
    return own("rows.jsonl", lines(*GOOD[:2], wrong, *GOOD[2:]), "rows.jsonl, row 3, ", *message, name=name)


def adapter(base: str = "rehearsal/gpt-oss-tiny", unlisted: str = "") -> dict[str, str]:
    """The files in which the world's adapter says how it was trained: by profile tiny."""
    tiny = profiles.load("tiny")
    config = json.dumps({"base_model_name_or_path": base, "revision": tiny.hub.model_revision})
    names = {*publish.ADAPTER_FILES} - {"README.md", "manifest.json", unlisted}
    texts = {name: f"finished {name}".encode() for name in names} | {"adapter_config.json": config.encode()}
    sums = {name: {"sha256": sha256(text).hexdigest(), "size": len(text)} for name, text in texts.items()}
    beside = {"adapter/adapter_config.json": config, "adapter/manifest.json": json.dumps(sums)}
    return {f"outputs/mine/{name}": text for name, text in {"profile.json": tiny.model_dump_json(), **beside}.items()}


COMMANDS = [
    Case("unknown profile", ("profile 'tinny' is unknown; did you mean 'tiny'?",), ("run", "--profile", "tinny")),
    Case("missing profile file", ("other.toml: no such file", "give the path"), ("run", "--profile", "other.toml")),
    Case("unknown notebook", ("no notebook is called '04_trian'; did you mean '04_train_lora'?",), ("run", "04_trian")),
    Case("no process", ("--nproc 0: expected 1, or more",), ("run", "--nproc", "0")),
    Case("ranks without training", ("--nproc 2: expected 1", "includes 04_train_lora"), ("run", "01_setup", "--nproc", "2")),
    Case("output root is a file", ("output_root = 'file': nothing can be written there", "name another place"), (*EXPLORE, "--output-root", "file"), files={"file": ""}),
    Case("output root is in a file", ("output_root = 'file/runs': nothing can be written there",), ("doctor", "--output-root", "file/runs"), files={"file": ""}),
    Case("the run's folder is a file", ("output_root = 'other': nothing can be written there (File exists)",), (*EXPLORE, "--output-root", "other"), files={"other/mine": ""}),
    Case("a name too long for a folder", ("nothing can be written there (File name too long)",), (*EXPLORE, "--output-root", "x" * 300)),
    Case("a profile's path too long", ("cannot be read (File name too long); check its name and permissions",), ("doctor", "--profile", "x" * 5000 + ".toml")),
    Case("escapes in a profile's path", (r"profile \x1b[2J\n.toml: no such file",), ("run", "--profile", "\x1b[2J\n.toml")),
    Case("no such notebook here", ("found no notebooks/01_setup.ipynb; run this in the project's folder",), ("run", "01_setup", "--output-root", "empty"), circumstance=("lose", "notebooks/01_setup.ipynb")),
    Case("report of nothing", ("no executed notebooks of mine were found; run `ftlib run` first",), ("report", "--profile", "mine.toml", "--output-root", "empty"), files={"empty/mine/profile.json": "{}"}),
    Case("no run of that name", ("found no run in output/mine; check --profile and --output-root, or run `ftlib run --profile mine.toml`",), ("export", "--profile", "mine.toml", "--output-root", "output")),
    Case("unknown format", ("--to ggu: found no such format; did you mean 'gguf'?",), ("export", "--profile", "mine.toml", "--to", "ggu")),
    Case("two things at once", ("found --to and --check together, expected one",), ("export", "--to", "gguf", "--check", "mine")),
    Case("push of an unknown format", ("found no folder of format 'mxfp'; did you mean 'mxfp4'?",), (*PUSH, "--exported", "mxfp")),
    Case("push of no export", ("found no manifest.json in mxfp4/, so it is not finished",), (*PUSH, "--exported", "mxfp4")),
    Case("export of nothing", ("lacks ['adapter_config.json'", "run 04_train_lora.ipynb to its end first"), ("export", "--profile", "mine.toml", "--output-root", "empty"), files={"empty/mine/profile.json": "{}"}),
    Case("no folder to check", ("--check nowhere: found no such folder, expected one with a model's files",), ("export", "--profile", "mine.toml", "--check", "nowhere")),
    Case("an adapter is no export", ("mine/ holds an adapter, expected a merged model; call `merge_and_unload` first",), ("export", "--profile", "mine.toml", "--check", "mine"), files={"mine/adapter_config.json": "{}"}),
    Case("nothing to serve", ("found no mxfp4.gguf in export/; run `ftlib export --to gguf` first",), ("serve", "--profile", "mine.toml")),
    Case("no GGUF file", ("llama.cpp cannot serve rows.gguf; is it a whole GGUF file of a model?",), ("serve", "--file", "rows.gguf"), files={"rows.gguf": "rows"}),
    Case("push of nothing", ("lacks ['adapter_config.json'", "run 04_train_lora.ipynb to its end first"), (*PUSH, "--output-root", "empty"), files={"empty/mine/profile.json": "{}"}),
]  # fmt: skip

PROFILES = [
    Case(f"profile: {found}", (found, allowed), profile=text)
    for text, found, allowed in [
        ("[train", "not valid TOML", "Expected"),
        (
            "[train]\nlearningrate = 1e-4",
            "train.learningrate: SFTConfig has no such argument",
            "did you mean 'learning_rate'?",
        ),
        ("[trian]\nseed = 1", "unknown key trian", "did you mean 'train'?"),
        ('[train]\nlearning_rate = "1e-4"', "train.learning_rate = '1e-4'", "write it without quotes"),
        ("[train]\nnum_train_epochs = 1.5", "train.num_train_epochs = 1.5", "integer"),
        ("[train]\nnum_train_epochs = 0", "train.num_train_epochs = 0", "greater than 0"),
        ("[train]\nlearning_rate = nan", "train.learning_rate = nan", "less than 1"),
        ('[train]\nschedule = "cosine"', "train.schedule: SFTConfig has no such argument", "'lr_scheduler_type'"),
        ('[train]\nlr_scheduler_type = "cosin"', "train.lr_scheduler_type = 'cosin'", "'cosine_with_min_lr'"),
        ('[data]\ntemplate_date = "2025-02-30"', "data.template_date = '2025-02-30'", "a real day as YYYY-MM-DD"),
        ('[data]\ndataset = "mine"', "data.dataset 'mine'", "a folder begins with './'"),
        ('[data]\ndataset = "a/b"', "data.revision is missing", "commit of a/b"),
        ('[data]\ndataset = "a/b"\nrevision = "main"', "data.revision = 'main'", "pattern"),
        ('[data.columns]\nquestion = "q"', "data.columns.question", "'prompt', 'response'"),
        ('[model]\ndtype = "float16"', "model.dtype = 'float16'", "'bfloat16' or 'float32'"),
        ('[hub]\nmodel = "a/b"', "hub.model_revision is missing", "add it"),
        ('[hub]\nendpoint = "http://somewhere"', "hub.endpoint = 'http://somewhere'", "pattern"),
        ('name = "../tiny"', "name = '../tiny'", "names the folder"),
        ("train = 3", "train = 3", "dictionary"),
        *(
            (f'[hub]\npush_target = "{name}"', "the Hub does not accept this name", "at most 96 of A-Z")
            for name in ("a..b", "a--b", "me/a.git", "é", "-a", "a.", "me/x/y", "a" * 97)
        ),
        ('[hub]\nmodel = "lab/a--b"', "hub.model = 'lab/a--b'", "at most 96"),
        ('[data]\ndataset = "a\\u0000.csv"', "data.dataset 'a\\x00.csv' is neither", "nor a path"),
        ('[data]\ndataset = "lab/a..b"', "data.dataset 'lab/a..b' is neither", "nor a path"),
        (
            "[recipe]\nexpert_layers = [1, 99]",
            "recipe.expert_layers names [99]",
            "but rehearsal/gpt-oss-tiny has layers 0 to 3",
        ),
        ("[recipe]\nexpert_layers = [1, 1]", "recipe.expert_layers = [1, 1]", "each layer once"),
        ("[recipe]\nexpert_layers = [true]", "recipe.expert_layers.0 = True", "valid integer"),
        ('[recipe]\nadapter_dtype = "bfloat16"', "recipe.adapter_dtype = 'bfloat16' does nothing", "'float32'"),
        ("[train]\nseed = 4294967296", "train.seed = 4294967296", "less than 4294967296"),
        ("[train]\nnum_train_epochs = 9_000_000_000", "train.num_train_epochs", "less than 2147483648"),
        ("[lora]\nr = 9_000_000_000", "lora.r = 9000000000", "less than 2147483648"),
        ("[train]\nmax_length = 1", "train.max_length = 1", "greater than 1"),
        ("[train]\nmax_length = 5_000", "train.max_length = 5000", "reads at most 4096 tokens"),
        ("[train]\nwarmup_steps = inf", "train.warmup_steps = inf", "finite"),
        ('[lora]\ntarget_modules = "q_proj"', "lora.target_modules = 'q_proj'", "or a list of names"),
        ('[lora]\ntarget_modules = ["qproj"]', "no linear layer 'qproj'", "did you mean 'q_proj'?"),
        ('[lora]\ntarget_modules = ["4.self_attn.q_proj"]', "no linear layer '4.self_attn.q_proj'", "did you mean"),
        ('[lora]\ntarget_modules = ["q_proj", "q_proj"]', "lora.target_modules = ['q_proj', 'q_proj']", "each once"),
        ("[recipe]\nexpert_layers = []\n[lora]\ntarget_modules = []", "nothing would learn", "fill one of them"),
        ("[lora]\nlora_dropout = 0.1", "lora.lora_dropout = 0.1 is not for experts", "recipe.expert_layers = []"),
        ('[lora]\ninit_lora_weights = "pissa"', "lora.init_lora_weights = 'pissa'", "'gaussian'"),
        ("[lora]\ninference_mode = true", "lora.inference_mode cannot be set", "leave it out"),
        ('[train]\neval_strategy = "steps"', "train.eval_strategy = 'steps': expected 'no'", "no rows to evaluate"),
        ('[train]\nlr_scheduler_type = "greedy"', "train.lr_scheduler_type = 'greedy'", "no rows to evaluate"),
        ('[train]\nlogging_strategy = "no"', "train.logging_strategy = 'no': expected 'steps'", "each update"),
        ('[train]\noptim = "paged_adamw_8bit"', "train.optim = 'paged_adamw_8bit'", "requirements.lock lacks"),
        ("[train]\npacking = true", "train.packing = True: expected False", "recipe.padding_free"),
        (
            "[train]\ngradient_checkpointing = true",
            "train.gradient_checkpointing = True",
            "it is called activation_checkpointing now",
        ),
        ("[train]\nlr_scheduler_kwargs = { min_lr = 0.1, x = 1 }", "'cosine_with_min_lr' takes no x", "'min_lr_rate'"),
        ("[train]\nlr_scheduler_kwargs = {}", "takes exactly one of", "'min_lr_rate'"),
        (f"[train]\nx = {'[' * 999}{']' * 999}", "mine.toml nests or extends too deep", "extend one of"),
        (f"[train.lr_scheduler_kwargs{'.x' * 3_000}]", "train.lr_scheduler_kwargs", "number"),
        ('name = "aux"', "name = 'aux'", "Windows"),
        (f'name = "{"x" * 65}"', "it names the folder of the outputs", "at most 64"),
    ]
]
EXTENDING = [
    Case("extends in a circle", ("mine.toml extends itself; let it extend one of",), profile='extends = "b.toml"', files={"b.toml": 'extends = "mine.toml"'}),
    Case("extends a number", ("extends = 3: expected one of",), profile="extends = 3"),
    Case("extends a missing file", ("profile b.toml: no such file",), profile='extends = "b.toml"'),
    Case("extends by a whole path", ("profile b.toml: no such file",), profile='extends = "/no/such/b.toml"'),
    Case("extends a folder", ("profile b.toml: no such file",), profile='extends = "b.toml"', files={"b.toml/notes.txt": ""}),
    Case("extends a path of 5,000 characters", ("profile xx", "...", "cannot be read (File name too long)"), profile=f'extends = "{"x" * 5_000}.toml"'),
    Case("extends a name that no file has", ("no such file",), profile='extends = "a\\u0000.toml"'),
    Case("extends a megabyte", ("profile b.toml: found 1000001 bytes, expected a short .toml file",), profile='extends = "b.toml"', files={"b.toml": "#" * 1_000_001}),
    Case("extends another encoding", ("profile b.toml: not valid TOML",), profile='extends = "b.toml"', files={"b.toml": "a = 1".encode("utf-16")}),
    Case("extends 1,000 files", ("profile mine.toml nests or extends too deep",), profile='extends = "0.toml"', files={f"{n}.toml": f'extends = "{n + 1}.toml"' for n in range(1_000)}),
    Case("extends nothing", ("profile '' is unknown; valid are",), profile='extends = ""'),
]  # fmt: skip

PARAMETERS = [
    Case(f"parameter: {given}", (message,), TRAIN, given=given)
    for given, message in [
        ("profil = 'tiny'", "no parameter is called profil (given: 'tiny'); did you mean 'profile'?"),
        ("learning_rate = 0.1", "no parameter is called learning_rate (given: 0.1); it is a value of the profile"),
        ("resume = 'false'", "parameter resume = 'false': found str, expected True or False"),
        ("profile = 3", "parameter profile = 3: found int, expected text"),
        ("resume = 1", "parameter resume = 1: found int, expected True or False"),
        ("num_train_epochs = 2", "it is a value of the profile: set it in a .toml file under [train]"),
        ("output_root = None", "parameter output_root = None: found NoneType, expected text"),
    ]
]

NAMED = 'columns = { prompt = "q", response = "a" }'
FILES = [
    Case("missing file", ("data.dataset rosw.jsonl: no such file", "did you mean 'rows.jsonl'?"), profile='[data]\ndataset = "rosw.jsonl"', files={"rows.jsonl": ""}),
    Case("empty folder", ("data.dataset rows: found no data files, expected one kind of .jsonl",), profile='[data]\ndataset = "./rows"', files={"rows/notes.txt": ""}),
    Case("two kinds", ("found .csv and .jsonl files, expected one kind",), profile='[data]\ndataset = "./rows"', files={"rows/a.csv": "", "rows/b.jsonl": ""}),
    Case("other columns", ("b.csv has columns ['x'], a.csv has ['prompt', 'completion']",), profile='[data]\ndataset = "./rows"', files={"rows/a.csv": "prompt,completion\na,b\n", "rows/b.csv": "x\n1\n"}),
    own("rows.jsonl", "", "rows.jsonl has no rows; expected at least one"),
    own("rows.jsonl", '{"messages": []}\n{"messages":\n', "rows.jsonl, line 2: not valid JSON", "fix it"),
    own("rows.jsonl", "[1, 2]\n", "rows.jsonl, row 1: found 1, expected an object"),
    own("rows.csv", "prompt,completion\na,b\na,b,c\n", "rows.csv, line 3: found 3 values, expected 2"),
    own("rows.csv", "prompt,prompt\na,b\n", "rows.csv: found the header", "a name of its own for each column"),
    own("rows.csv", 'prompt,completion\n"a,b\n', "rows.csv, line", "not valid CSV"),
    own("rows.jsonl", lines(GOOD[0]).encode("utf-16"), "rows.jsonl is not UTF-8 text", "save it again"),
    own("rows.parquet", b"PAR1 and no more", "rows.parquet is not a readable Parquet file", "write it again"),
    own("rows.jsonl", lines({"question": "a", "answer": "b"}), "the data set has columns ['question', 'answer']", "[data] columns ="),
    own("rows.jsonl", lines({"question": "a", "answer": "b"}), "data.columns.prompt = 'questoin': the data set has no such column; did you mean 'question'?", extra='columns = { prompt = "questoin", response = "answer" }'),
    own("rows.jsonl", lines({"question": "a"}), "data.columns names ['prompt']", "prompt and response", extra='columns = { prompt = "question" }'),
    Case("a subfolder", ("data.dataset rows: found older/, expected only files that end in .jsonl",), profile='[data]\ndataset = "./rows"', files={"rows/a.jsonl": "{}", "rows/older/b.jsonl": "{}"}),
    Case("a folder that is called as a file", ("data.dataset rows: found b.jsonl/, expected only files",), profile='[data]\ndataset = "./rows"', files={"rows/a.jsonl": "{}", "rows/b.jsonl/c.jsonl": "{}"}),
    own("rows.jsonl", '{"prompt": "a", "prompt": "b", "completion": "c"}\n', "rows.jsonl, line 1: not valid JSON (an object has 'prompt' twice)", "fix it"),
    own("rows.json", '[{"prompt": "a", "prompt": "b"}]', "rows.json: not valid JSON (an object has 'prompt' twice)"),
    own("rows.csv", "prompt;completion\na;b\na;b;c\n", "rows.csv, line 3: found 3 values, expected 2", name="semicolons"),
    own("rows.csv", "prompt\tprompt\na\tb\n", "rows.csv: found the header ['prompt', 'prompt']", name="a header twice, with tabs"),
    own("rows.csv", "prompt,completion\na,Größe\n".encode("cp1252"), "rows.csv is not UTF-8 text", name="a code page of Windows"),
    own("rows.parquet", parquet(["prompt", "prompt"], "a", "b"), "rows.parquet: found the header ['prompt', 'prompt']", name="a column twice"),
    own("rows.parquet", parquet(["prompt", "completion"], "a", b"\xff"), "rows.parquet holds bytes that are not UTF-8 text", name="bytes"),
    own("rows.jsonl", lines({"k" * 5000: "a", "answer": "b"}), f"the data set has columns ['{'k' * 30}…', 'answer']", name="a very long key"),
    own("rows.jsonl", lines({"\x1b[31mkey\x07": "a"}), r"the data set has columns ['\x1b[31mkey\x07']", name="a key that colours the terminal"),
    own("r\x1b[2Jows.jsonl", "[", r"r\x1b[2Jows.jsonl, line 1: not valid JSON", name="a file name that clears the terminal"),
    own("rows.jsonl", lines({"text": "### Instruction: a ### Response: b"}), "the data set has columns ['text']; expected messages, conversations, prompt and completion, or instruction and output"),
    own("rows.jsonl", lines({"q": "a", "a": "b"}), "data.columns names a column twice: {'prompt': 'q', 'response': 'q'}; expected another one for each", extra='columns = { prompt = "q", response = "q" }'),
    own("rows.jsonl", lines({"q": 1, "a": "b"}, {"q": 2, "a": "c"}), "data.columns.prompt = 'q': found int in every row, such as 1, expected text, or a list of messages", extra=NAMED),
    own("rows.jsonl", lines({"q": "a", "a": ["b", "c"]}), "data.columns.response = 'a': found list in every row, such as ['b', 'c'], expected text", extra=NAMED),
    own("rows.jsonl", lines({"q": "a", "a": True}), "data.columns.response = 'a': found bool in every row, such as True", extra=NAMED),
    own("rows.jsonl", lines({"q": "a", "a": "b", "s": [QUESTION]}), "data.columns.system = 's': found list in every row", "expected text; name another column", extra=NAMED.replace("}", ', system = "s" }')),
]  # fmt: skip

ROWS = [
    row("no list", {"messages": "hello"}, "messages: found 'hello', expected a list of messages"),
    row("no answer", {"messages": [QUESTION]}, "messages: found roles ['user'], expected system (or none)"),
    row("unknown role", {"messages": [QUESTION, {**ANSWER, "role": "bot"}]}, "found the role 'bot', expected system, user"),
    row("empty reply", {"messages": [QUESTION, {**ANSWER, "content": "  "}]}, "messages[1].content: found nothing, expected an answer, or reasoning"),
    row("a number", {"messages": [QUESTION, {**ANSWER, "content": 5}]}, "messages[1].content: found 5, expected text"),
    row("channel in the answer", {"messages": [QUESTION, {**ANSWER, "content": "<|channel|>final<|message|>5"}]}, "messages[1].content: found the marker <|channel|>, expected text without markers"),
    row("unclosed <think>", {"messages": [QUESTION, {**ANSWER, "content": "<think>Hm. 5."}]}, "found the tags <think>, expected one <think>…</think>"),
    row("reasoning twice", {"messages": [QUESTION, {**ANSWER, "content": "<think>Hm.</think>5", "thinking": "Hm."}]}, "found reasoning in <think> and in thinking, expected one of the two"),
    own("rows.jsonl", lines({"messages": 1}, {"messages": 2}), "rows.jsonl, row 1, messages: found 1", "(2 bad rows in all)", name="all bad", extra='on_bad_row = "drop"'),
    own("rows.csv", "prompt,completion\na,b\n,c\n", "rows.csv, row 2, prompt: found nothing, expected text", name="an empty prompt"),
    own("rows.jsonl", lines({"q": "a", "a": "b", "l": "French", "s": "reasoning language: German"}), "row 1, l: found 'French', expected 'German', which the system message asks for", name="two languages", extra='columns = { prompt = "q", response = "a", system = "s", reasoning_language = "l" }'),
    row("a user who thinks", {"messages": [{**QUESTION, "thinking": "Hm."}, ANSWER]}, "messages[0].thinking: found 'Hm.', expected the reasoning of the assistant alone"),
    row("two reasonings", {"messages": [QUESTION, {**ANSWER, "thinking": "Hm.", "reasoning": "Ah."}]}, "messages[1].reasoning: found 'Ah.', expected the same as in messages[1].thinking"),
    row("a tool call", {"messages": [QUESTION, {**ANSWER, "tool_calls": [{"id": "1"}]}]}, "messages[1].tool_calls: found [{'id': '1'}], expected role, content and thinking alone"),
    row("a tool's reply", {"messages": [QUESTION, {"role": "tool", "content": "5"}, ANSWER]}, "found the role 'tool', expected system, user"),
    row("an image", {"messages": [{"role": "user", "content": [{"type": "image", "text": "a cat"}]}, ANSWER]}, "messages[0].content: found [{'type': 'image'", "expected text"),
    row("a key that colours the terminal, in a message", {"messages": [QUESTION, {**ANSWER, "\x1b[31mkey": "a"}]}, r"messages[1].\x1b[31mkey: found 'a', expected role"),
    row("a value that colours the terminal", {"messages": [QUESTION, {**ANSWER, "role": "\x1b[31m\u202e"}]}, r"found the role '\x1b[31m\u202e', expected system"),
    own("rows.jsonl", lines({"conversations": [{"from": "human", "value": "a"}, {"from": "observation", "value": "b"}]}), "conversations: found the role 'observation', expected system, user"),
    own("rows.jsonl", lines({"instruction": "", "input": "2 3", "output": "5"}), "rows.jsonl, row 1, instruction: found nothing, expected text"),
    own("rows.jsonl", lines({"instruction": "Add.", "input": [2, 3], "output": "5"}), "rows.jsonl, row 1, input: found [2, 3], expected text"),
    own("rows.csv", f'messages\n"{[QUESTION, ANSWER]}"\n', 'rows.csv, row 1, messages: found "[{\'role\': \'user\'', "expected a list of messages with role and content, or its JSON", name="messages as Python writes them"),
    own("rows.jsonl", lines({"system": "Be brief.", "messages": [{"role": "system", "content": "Be kind."}, QUESTION, ANSWER]}), "messages: found roles ['system', 'system', 'user', 'assistant'], expected system (or none)"),
    own("rows.jsonl", '{"prompt": "a", "completion": NaN}\n', "rows.jsonl, row 1, completion: found nothing, expected an answer", name="NaN"),
]  # fmt: skip

SPLITS = [
    own("rows.jsonl", lines(*GOOD), "no row asks for a reasoning language", "data.held_out_share", name="nothing to measure with", extra=""),
    own("rows.jsonl", lines(*GOOD), "data.held_out_share 0.01 of 8 prompts leaves 8 rows to train on and 0 to measure with", name="too small a share", extra="held_out_share = 0.01"),
    own("rows.jsonl", lines(*({"prompt": text, "completion": "a"} for text in ("Who?", "who?", " WHO?", "Who？"))), "data.held_out_share 0.5 of 1 prompts leaves 4 rows to train on and 0", name="one prompt in four forms"),
    own("rows.jsonl", lines({"prompt": " Do you KNOW what the capital of\u00a0poland is? ", "completion": "Warsaw.", "reasoning_language": "French"}), "1 of the shipped held-out questions are in the data set, such as 'Do you know what the capital of Poland is?'", name="a shipped question in another form", extra=""),
]  # fmt: skip

HUB = [
    Case("no token", ("found no token, expected one that may write", "hf auth login"), TRAIN, circumstance=("no_token",)),
    Case("a reader's token", ("may not write to learner/",), TRAIN, circumstance=("role", "read")),
    Case("a token that is not valid", ("the Hub answers 401 Unauthorized", "hf auth login"), TRAIN, circumstance=("answer", 401)),
    Case("too many requests", ("the Hub answers 429 Too Many Requests", "a few minutes"), TRAIN, circumstance=("answer", 429)),
    Case("there is no Hub", ("the Hub is out of reach (ConnectError)",), TRAIN, circumstance=("answer", None)),
    Case("a token without scopes", ("may not write to learner/",), TRAIN, circumstance=("role", "fineGrained")),
    Case("somebody else's account", ("found a token of learner that may not write to ada/mine",), TRAIN, profile='[hub]\npush_target = "ada/mine"'),
    *(
        Case(f"{status} before a push", (f"the Hub answers {status}", advice, "then run `ftlib push --profile mine.toml`", "unchanged"), PUSH, circumstance=("answer", status))
        for status, advice in [(401, "hf auth login"), (403, "use a token that may write"), (404, "check hub.push_target"), (413, "look at the repository"), (429, "a few minutes"), (500, "wait"), (503, "wait")]
    ),
    Case("no Hub to push to", ("the Hub is out of reach (ConnectError); check the network and the proxy, then run `ftlib push --profile mine.toml`",), PUSH, circumstance=("answer", None)),
    Case("no token to push with", ("found no token, expected one that may write", "hf auth login"), PUSH, circumstance=("no_token",)),
    Case("a reader's token to push with", ("found a token of learner that may not write to learner/",), PUSH, circumstance=("role", "read")),
]  # fmt: skip

DISK = [
    Case("a full disk", ("disk for downloads: found 0.0 GB free, expected more; make room for",), circumstance=("free_bytes", 10**6)),
    Case("a disk that nothing can be written to", ("output_root = '/sys': nothing can be written there",), ("doctor", "--output-root", "/sys")),
    Case("the same, and the folder is there", ("output_root = '/sys': nothing can be written there", "change its permissions"), (*EXPLORE, "--output-root", "/sys"), profile='name = "kernel"'),
    Case("a disk that fills up", ("No space left on device (outputs/mine/report); make room",), circumstance=("meet", "ENOSPC", "outputs/mine/report")),
    Case("a disk that fills up, in a report", ("No space left on device; make room on the disk",), ("report", "--profile", "mine.toml"), circumstance=("full_while_reporting",)),
    Case("a full disk before training", ("disk for downloads: found 0.0 GB free",), TRAIN, circumstance=("free_bytes", 10**12, 10**12, 10**6)),
]  # fmt: skip

NOTEBOOK = "notebooks/02_explore_dataset.ipynb"
MACHINES = [
    *(Case(f"not one of several processes: {told}", (f"found {told} in the environment", "unset them to run one process"), ("run", "01_setup"), circumstance=("environment", told)) for told in (
        "RANK=5", "LOCAL_RANK=1", "RANK=x", "RANK=-1, WORLD_SIZE=2", "RANK=", "WORLD_SIZE=", "WORLD_SIZE=0", "WORLD_SIZE=2",
        "RANK=2, LOCAL_RANK=0, WORLD_SIZE=2", "RANK=0, LOCAL_RANK=2, WORLD_SIZE=2",
    )),
    Case("the same in a notebook", ("found RANK=1 in the environment",), ("plan",), circumstance=("environment", "RANK=1")),
    *(Case(f"a notebook: {content[:20]}", (f"{NOTEBOOK}: found {found}, expected one of format 4; restore the file",), files={NOTEBOOK: content}) for found, content in [
        ("the marks of a merge conflict", '{\n<<<<<<< HEAD\n "cells": []\n=======\n "cells": []\n>>>>>>> theirs\n}'),
        ("no whole notebook", ""),
        ("no whole notebook", '{"cells": [{"cell_type": "code"}], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'),
        ("format 3", '{"worksheets": [], "metadata": {}, "nbformat": 3, "nbformat_minor": 0}'),
    ]),
    Case("notebooks of another user", ("found notebooks of another user in .., expected your own; change to that folder",), ("run", "01_setup"), circumstance=("somebody_elses",)),
    Case("no working folder", ("the working folder no longer exists; change to the project's folder",), ("doctor",), circumstance=("no_folder",)),
    Case("stopped by hand", ("02_explore_dataset was stopped by hand; run it again to go on from the last checkpoint",), circumstance=("meet", "KeyboardInterrupt")),
    Case("no memory", ("Cannot allocate memory; close other programs",), circumstance=("meet", "MemoryError")),
    Case("no free port", ("Address already in use; free a port",), circumstance=("meet", "EADDRINUSE")),
    Case("too many open files", ("Too many open files (notebooks); allow more",), circumstance=("meet", "EMFILE", "notebooks")),
    Case("a folder that is not one's own", ("Permission denied (outputs/mine); change its permissions",), circumstance=("meet", "EACCES", "outputs/mine")),
]  # fmt: skip

ARTEFACTS = [
    Case("an adapter that was changed", ("adapter/adapter_model.safetensors: found 7 bytes", "expected", "as manifest.json has it"), PUSH, circumstance=("change", "adapter/adapter_model.safetensors")),
    Case("a manifest that is none", ("adapter/manifest.json unreadable",), PUSH, circumstance=("change", "adapter/manifest.json")),
    Case("no checkpoint of a finished adapter", ("adapter/ holds a finished adapter, and there is no checkpoint of it", "set resume = False",), TRAIN),
    Case("a training that runs already", ("another process is training in outputs/mine/, or a notebook", "wait for it"), TRAIN, circumstance=("another_trains",)),
    Case("a manifest that lists nothing", ("adapter/manifest.json",), PUSH, files={"outputs/mine/adapter/manifest.json": "{}"}),
    Case("a manifest that lists less than is pushed", ("adapter/manifest.json lacks ['adapter_model.safetensors']",), PUSH, files=adapter(unlisted="adapter_model.safetensors")),
    *(
        Case(f"another profile than the adapter's: {name}", (f"adapter/ was trained with {name} = ", "now it is", "take that back, or run 04_train_lora"), PUSH, profile=f"[{section}]\n{key} = {value}")
        for name, section, key, value in [("lora.r", "lora", "r", "4"), ("train.seed", "train", "seed", "1"), ("data.held_out_share", "data", "held_out_share", "0.5"), ("recipe.expert_layers", "recipe", "expert_layers", "[]")]
    ),
    Case("an adapter of another base", ("adapter/ was trained with hub.model = other/base, now it is rehearsal/gpt-oss-tiny",), PUSH, files=adapter(base="other/base")),
    Case("an adapter without its profile", ("profile.json or adapter/adapter_config.json cannot be read; run 04_train_lora",), PUSH, circumstance=("lose", "outputs/mine/profile.json")),
]  # fmt: skip

CASES = [*COMMANDS, *PROFILES, *EXTENDING, *PARAMETERS, *FILES, *ROWS, *SPLITS, *HUB, *DISK, *MACHINES, *ARTEFACTS]
