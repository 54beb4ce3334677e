"""Texts and metadata to the ids that product.onnx takes: a reference for other languages.

It lies beside the exported graphs and reads the plain data there: model.json, and bpe.json or
tokenizer/tokenizer.json. Beyond Python it needs ftfy, and regex for the sub-words of CLIP or
tokenizers for those of a Hugging Face model.

    from read_texts import Reader
    token_ids, entity_ids = Reader('FOLDER')({'description': 'a red tee'}, {'brand': ['Diesel']})
"""

import html
import itertools
import json
import re
import unicodedata
from pathlib import Path

import ftfy

WORD = re.compile(r'\w+|[^\w\s]')
FIELD = re.compile(r'{(\w+)}')
CONTROL = re.compile(r'[\x00-\x08\x0b\x0e-\x1f\x7f\ufeff]')


def unescaped(text):
    return html.unescape(html.unescape(text))


def clean(text):
    text = unescaped(text).encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')
    return ' '.join(unicodedata.normalize('NFC', CONTROL.sub('', text)).split())


def folded(text):
    return unicodedata.normalize('NFKC', text).casefold().replace('’', "'")


def words(text):
    """Of a clean text: (folded word, start, end)."""
    return [(folded(found.group()), *found.span()) for found in WORD.finditer(text)]


class Reader:
    """``reader(text_fields, entities)`` gives token ids (L,) and entity ids (K, M), as lists."""

    def __init__(self, folder):
        model = json.loads(Path(folder, 'model.json').read_text(encoding='utf-8'))
        self.text, self.names = model['text'], model['vocab']['names']
        kind = SubWordsOfCLIP if self.text['subwords'] == 'bpe.json' else SubWordsOfHuggingFace
        self.subwords = kind(Path(folder, self.text['subwords']))
        self.id_of = {
            type_: {folded(clean(name)): id_ for id_, name in enumerate(names, 1)}
            for type_, names in self.names.items()
        }
        self.entities_of = {}  # by the words of their name: [(type number, entity id)]
        sought = self.text['mention_types']
        sought = self.names if sought is None else sought
        for k, (type_, names) in enumerate(self.names.items()):
            for id_, name in enumerate(names if type_ in sought else (), 1):
                if any(map(str.isalnum, name)):
                    key = tuple(word for word, _, _ in words(clean(name)))
                    self.entities_of.setdefault(key, []).append((k, id_))
        self.longest = max(map(len, self.entities_of), default=0)

    def __call__(self, text_fields, entities=None):
        tags = {t: v for t, v in (entities or {}).items() if v and self.text['tags'] == 'given'}
        text = clean(' '.join(self.part(f, text_fields, tags) for f in self.text['fields']))
        mentions = list(self.mentions(text))
        return self.token_ids(text, mentions), self.entity_ids(tags, mentions)

    def part(self, field, text_fields, tags):
        """A field, an entity type, or a pattern of them that is left out where one is empty."""
        names = FIELD.findall(field)
        value = {
            name: text_fields[name] if name in text_fields else ' '.join(tags.get(name, ()))
            for name in names or [field]
        }
        if not names:
            return value[field]
        return FIELD.sub(lambda found: value[found[1]], field) if all(value.values()) else ''

    def mentions(self, text):
        """Names in the text, leftmost and longest: (start, end, [(type number, entity id)])."""
        found, i = words(text), 0
        while i < len(found):
            for n in range(min(self.longest, len(found) - i), 0, -1):
                named = self.entities_of.get(tuple(word for word, _, _ in found[i : i + n]))
                if named:
                    yield found[i][1], found[i + n - 1][2], named
                    break
            i += n if self.longest and named else 1

    def token_ids(self, text, mentions):
        own, ids, end = self.text, [], 0
        for begin, stop, named in mentions if own['mention'] != 'keep' else ():
            k, id_ = named[0]
            before = sum(len(names) for names in list(self.names.values())[:k])
            extra = own['size'] + (before + id_ - 1 if own['mention'] == 'token' else 0)
            ids += [*self.subwords(text[end:begin]), extra]
            end = stop
        ids += self.subwords(text[end:])
        room = own['context_length'] - 2
        if own['mention'] == 'token' and len(ids) > room:  # ordinary sub-words go first
            ordinary = [i for i, token in enumerate(ids) if token < own['size']]
            gone = set(ordinary[room - len(ids) :])
            ids = [token for i, token in enumerate(ids) if i not in gone]
        ids = [own['start'], *ids[:room], own['end']]
        return ids + [own['pad']] * (own['context_length'] - len(ids))

    def entity_ids(self, tags, mentions):
        """From the metadata where there are some, else from the text; 0 is none or unknown."""
        rows = []
        for k, type_ in enumerate(self.names):
            found = [id_ for _, _, named in mentions for own, id_ in named if own == k]
            if tags and type_ not in self.text['text_types']:
                found = [self.id_of[type_].get(folded(clean(n)), 0) for n in tags.get(type_, ())]
            known = list(dict.fromkeys(filter(None, found)))[: self.text['max_values']]
            rows.append(known + [0] * (self.text['max_values'] - len(known)))
        return rows


class SubWordsOfHuggingFace:
    """A tokenizer.json; any library that reads the format will do."""

    def __init__(self, path):
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(path))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()

    def __call__(self, text):
        text = ' '.join(unescaped(ftfy.fix_text(text)).split())
        return self.tokenizer.encode(text, add_special_tokens=False).ids


class SubWordsOfCLIP:
    """Byte-pair encoding: the pair of lowest rank is merged, until none is left."""

    def __init__(self, path):
        import regex

        data = json.loads(path.read_text(encoding='utf-8'))
        self.id_of = {token: id_ for id_, token in enumerate(data['tokens'])}
        self.rank = {tuple(pair): rank for rank, pair in enumerate(data['merges'])}
        self.bytes, self.special = data['bytes'], data['special']  # bytes: a sign for each of 256
        self.words = regex.compile(data['pattern'], regex.IGNORECASE)

    def __call__(self, text):
        text = ' '.join(unescaped(ftfy.fix_text(text)).split()).lower()
        return [self.id_of[part] for word in self.words.findall(text) for part in self.parts(word)]

    def parts(self, word):
        if word in self.special:
            return [word]
        parts = [self.bytes[byte] for byte in word.encode()]
        parts[-1] += '</w>'
        while len(parts) > 1:
            pair = min(itertools.pairwise(parts), key=lambda p: self.rank.get(p, 1e9))
            if pair not in self.rank:
                break
            merged = []
            for part in parts:
                if merged and merged[-1] == pair[0] and part == pair[1]:
                    merged[-1] += part
                else:
                    merged.append(part)
            parts = merged
        return parts
