"""Makes the small tokenizer fixtures of packages/models/src/tokenizer/fixtures and what the reference libraries say about them.

    python -m venv venv && venv/bin/pip install tokenizers==0.23.2 sentencepiece==0.2.2
    venv/bin/python tools/oracle/make-tokenizer-fixtures.py

Vocabularies are trained on the text below, so every file is our own. Vectors come from sentencepiece and tokenizers.
"""
import io
import json
import os
import random

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

OUT = os.path.join(os.path.dirname(__file__), "../../packages/models/src/tokenizer/fixtures")

TEXT = """
The lighthouse keeper wrote one line in her book every evening: wind, ships, and the price of bread.
On the 3rd of March 1987 there were 12 ships, 47 gulls and no wind at all; she wrote "nothing moves".
Her nephew, who counted everything twice, asked: "Isn't it strange that we'll never see the same wave again?"
"You've counted them," she said, "so you'd know." He hadn't; he'd counted only 2,048 of them before lunch.
In the autumn the harbour smelled of tar, apples and rain.   The boats came home, and came home, and came home.
Çelik köprüden geçen tren, über die Brücke; l'été dernier, où étais-tu? Москва не сразу строилась.
灯塔的看守人每天晚上写一行字：风、船和面包的价格。今天有十二条船，没有风。明天还会有船吗？
海鸥在飞，孩子在数浪花，数到两千零四十八就忘了。 東京の海は静かだ。 서울의 바다.
def waves(n):
\tif n == 0:
\t\treturn []
\treturn waves(n - 1) + [n * n]   # 0, 1, 4, 9, 16
for (let i = 0; i < 100; i++) { total += i; }
🙂 🌊🌊🌊 end of the page ½ ﬁ ① Ａ
""".strip()

PROBES = [
    "", " ", "  ", "a", " a", "a ", "  two  spaces  ", "The lighthouse", "the ships came home", "Isn't it? WE'LL see, you'D know",
    "3", "33", "333", "1987 and 2,048", "\n", "\n\n", " \n a\r\n\tb", "\t\t", "灯塔的看守人", "東京 서울 Москва", "ﬁ ① Ａ ½", "e\u0301 \u00e9",
    "🙂🌊", "👩‍🚀", "\U000e0041", "x<sep>y", "<s>hi</s>", "<|end|>", "a <|end|> b", "<pad> <pad>", "say <think> now", "tie<w>tie <w> x",
    "▁a▁ b", "<0x41>", "日本語", "don't 'ſ", "a\u00a0b\u3000c", "\ufeffbom", "waves(n - 1) + [n * n]", "....!!!!????", "ab" * 40, " " * 33,
]


def probes():
    random.seed(7)
    words = TEXT.split(" ")
    extra = [" ".join(random.choices(words, k=random.randint(1, 12))) for _ in range(20)]
    pools = [(0x20, 0x7F), (0xA0, 0x180), (0x400, 0x460), (0x3040, 0x30FF), (0x4E00, 0x4E80), (0x1F300, 0x1F340)]
    for _ in range(20):
        extra.append("".join(chr(random.randint(*random.choice(pools))) for _ in range(random.randint(1, 20))))
    return PROBES + extra


def write(name, data):
    path = os.path.join(OUT, name)
    with open(path, "wb") as file:
        file.write(data if isinstance(data, bytes) else data.encode())
    print(name, os.path.getsize(path))


def sentencepiece_model(**options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.split("\n")), model_writer=model, minloglevel=2, num_threads=1, **options
    )
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(model.getvalue())
    vectors = []
    for text in probes():
        ids = processor.encode(text)
        vectors.append({"text": text, "ids": ids, "decoded": processor.decode(ids)})
    return model.getvalue(), vectors


def main():
    os.makedirs(OUT, exist_ok=True)
    vectors = {}
    bpe, vectors["sentencepiece-bpe.model"] = sentencepiece_model(
        model_type="bpe", vocab_size=560, byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        split_digits=True, user_defined_symbols=["<sep>"], allow_whitespace_only_pieces=True, character_coverage=0.98,
    )
    write("sentencepiece-bpe.model", bpe)
    rules = os.path.join(OUT, "rules.tsv")
    with open(rules, "w") as file:  # code points of source and target
        for source, target in {"ﬁ": "fi", "①": "1", "Ａ": "A", "\u3000": " ", "\t": " ", "\u00a0": " ", "e\u0301": "é", "½": "1⁄2", "\ufeff": ""}.items():
            hexes = [" ".join(f"{ord(c):X}" for c in side) for side in (source, target)]
            file.write("\t".join(hexes) + "\n")
    unigram, vectors["sentencepiece-unigram.model"] = sentencepiece_model(
        model_type="unigram", vocab_size=300, normalization_rule_tsv=rules, pad_id=3, character_coverage=0.98, hard_vocab_limit=False,
    )
    os.remove(rules)
    write("sentencepiece-unigram.model", unigram)

    qwen2 = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    byte_level = Tokenizer(models.BPE())
    byte_level.normalizer = normalizers.NFC()
    byte_level.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(qwen2), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    byte_level.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, min_frequency=2, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    byte_level.train_from_iterator([TEXT], trainer)
    merges = json.loads(byte_level.to_str())["model"]["merges"]
    byte_level.add_tokens([
        AddedToken("<|end|>", special=True, normalized=False),
        AddedToken("<pad>", special=True, normalized=False, lstrip=True, rstrip=True),
        AddedToken("<s>", special=True, normalized=False),
        AddedToken("<think>", special=False, normalized=False),
        AddedToken("<w>", special=False, normalized=True, single_word=True),
        AddedToken("  ", special=False, normalized=True),
    ])
    end = byte_level.token_to_id("<s>")
    byte_level.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", end)])
    unigram_json = Tokenizer(models.Unigram())
    unigram_json.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    unigram_json.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    unigram_json.decoder = decoders.Metaspace(prepend_scheme="first")
    unigram_json.train_from_iterator(
        TEXT.split("\n"), trainers.UnigramTrainer(vocab_size=260, show_progress=False, special_tokens=["<unk>", "<sep>"], unk_token="<unk>")
    )
    for name, tokenizer in {"byte-level.tokenizer.json": byte_level, "unigram.tokenizer.json": unigram_json}.items():
        write(name, tokenizer.to_str())
        vectors[name] = []
        for text in probes():
            ids = tokenizer.encode(text).ids
            vectors[name].append({
                "text": text,
                "ids": ids,
                "decoded": tokenizer.decode(ids, skip_special_tokens=False),
                "skipped": tokenizer.decode(ids, skip_special_tokens=True),
            })
    vectors["training"] = {"text": TEXT, "vocabSize": 400, "merges": merges}
    write("tokenizer-vectors.json", json.dumps(vectors, ensure_ascii=True, indent=0))


main()
