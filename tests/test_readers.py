"""Readers meet what nobody foresaw: any value at any path, any byte in any file. Every row is a sample or listed."""
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mmneuron_nb.data.readers import READERS, folder, from_rows, table
from mmneuron_nb.data.samples import load_image
from mmneuron_nb.scenes.world import make
from mmneuron_nb.errors import MMNeuronError, SampleError

QUICK = settings(max_examples=60, deadline=None, derandomize=True, database=None,
                 suppress_health_check=list(HealthCheck))
ODD = st.sampled_from(['\ud800', '../x.jpg', '/', '.', 'a\0b', 'x'*5000, '<image>', '000000000001.jpg', 'NaN'])
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-2**70, 2**70) | st.floats() | st.text(max_size=8) | ODD,
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=3), x, max_size=2))
FILE = '000000000001.jpg'
IMAGES = [dict(id=i, file_name=FILE, width=224, height=224) for i in (1, 2)]
POLYGON = dict(bbox=[1, 2, 30, 40], segmentation=[[1, 2, 31, 2, 31, 42]], iscrowd=0)
RUNS = dict(bbox=[0, 0, 224, 1], segmentation=dict(size=[224, 224], counts=[0, 224, 224*223]), iscrowd=1)
INSTANCES = dict(
    images=IMAGES, categories=[dict(id=18, name='dog', supercategory='animal')],
    annotations=[dict(POLYGON, id=1, image_id=1, category_id=18), dict(RUNS, id=2, image_id=1, category_id=18)])
CAPTIONS = dict(images=IMAGES, annotations=[dict(id=1, image_id=1, caption='A dog.')])
QUESTIONS = dict(questions=[dict(question_id=q, image_id=1, question='What?') for q in (1, 2, 3)])
TALK = [{'from': 'human', 'value': 'What?\n<image>'}, {'from': 'gpt', 'value': 'A dog.'}]
ANSWER = dict(multiple_choice_answer='dog', answers=[dict(answer='dog')]*2, answer_type='other')
PAGE = dict(question='Who?', image=FILE, docId=1, question_types=['form'], answers=['I', 'me'])
DRIVE = dict(question_id='a', images=[FILE]*3, question='Where?')
ASK = dict(img_id=1, active=True, type='count', question='How many?')
KARPATHY = dict(filename=FILE, split='test', sentences=[dict(raw='A dog.')])
SOURCES = { # reader: the file that it is given, {file: content}, options
    'coco_captions': ('captions_x.json', {'captions_x.json': CAPTIONS, 'instances_x.json': INSTANCES},
                      dict(instances='instances_x.json')),
    'coco_instances': ('instances_x.json', {'instances_x.json': INSTANCES}, {}),
    'vqav2': ('questions.json', {
        'questions.json': QUESTIONS,
        'annotations.json': dict(annotations=[dict(ANSWER, question_id=q) for q in (1, 2)])}, {}),
    'llava_instruct': ('d.json', {'d.json': [dict(id=str(i), image=FILE, conversations=TALK) for i in (1, 2)]}, {}),
    'docvqa': ('v1.0.json', {'v1.0.json': dict(data=[dict(PAGE, questionId=i) for i in (1, 2)])}, {}),
    'lingoqa': ('l.json', {'l.json': [dict(DRIVE, answer=a) for a in ('here', 'there')]}, {}),
    'rsvqa_hr': ('questions.json', {
        'questions.json': dict(questions=[dict(ASK, id=i) for i in (1, 2)]),
        'answers.json': dict(answers=[dict(id=1, question_id=1, answer='two', active=True)])}, {}),
    'sbu': ('sbu.json', {'sbu.json': dict(image_urls=[f'http://x/{FILE}']*2, captions=['A dog.', 'A cat.'])}, {}),
    'flickr30k': ('f.json', {'f.json': dict(images=[KARPATHY]*2)}, {}),
    'table': ('t.json', {'t.json': [dict(id=i, image=FILE, question='What?', answer='A dog.') for i in (1, 2)]}, {}),
}
CHOICES = 'A:x,B:y,C:z,D:w'
TEXTS = { # the same for files of lines
    'cocoqa': ('.', {'questions.txt': b'what ?\nwhere ?\n', 'answers.txt': b'dog\nhill\n', 'img_ids.txt': b'1\n1\n',
                     'types.txt': b'0\n3\n'}),
    'pmc_vqa': ('p.csv', {'p.csv': (
        'Figure_path,Question,Answer,Choice A,Choice B,Choice C,Choice D\n'
        f'{FILE},"What, and why?",A,{CHOICES}\n{FILE},Why?,x,{CHOICES}\n').encode()}),
    'flickr30k': ('f.token', {'f.token': f'{FILE}#0\tA dog.\n{FILE}#1\tDogs.\n'.encode()}),
    'table': ('t.jsonl', {'t.jsonl': (
        f'{{"image": "{FILE}", "question": "Where?"}}\n{{"image": "{FILE}", "question": "caf\u00e9?"}}\n').encode()}),
}
PHOTO = make(1, seed=8)[0].image


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    out = tmp_path_factory.mktemp('sources')
    PHOTO.save(out/FILE)
    (out/'Data').mkdir()
    PHOTO.save(out/'Data'/'1.tif')
    return out


def paths(x, at=()):
    "The paths of all values in a JSON structure."
    yield at
    inside = x.items() if isinstance(x, dict) else enumerate(x) if isinstance(x, list) else ()
    for k, v in inside: yield from paths(v, (*at, k))


def changed(x, at, value):
    "A copy of the structure with another value at a path; `...` takes it out."
    if not at: return value
    x, k = (dict(x) if isinstance(x, dict) else list(x)), at[0]
    x[k] = changed(x[k], at[1:], value)
    if x[k] is ...: x.pop(k)
    return x


def honest(name, path, **options):
    "The reader, read twice, then strictly: a row is a sample or listed, passes are alike, strict raises for bad ones."
    reader = READERS[name](path, **options)
    first = [(s.id, s.prompt, s.answer) for s in reader]
    listed = list(reader.skipped)
    assert len(first) + len(listed) == len(reader) and reader.good == len(first)
    assert [s.row for s in listed] == sorted({s.row for s in listed}) and all(s.reason for s in listed)
    assert first == [(s.id, s.prompt, s.answer) for s in reader] and listed == reader.skipped
    assert len({i for i, _, _ in first}) == len(first)
    for i, prompt, answer in first:
        assert isinstance(i, str) and isinstance(prompt, str) and prompt.strip() and (answer is None or answer.strip())
        f'{i}{prompt}{answer}'.encode()
    strict = READERS[name](path, strict=True, **options)
    if listed:
        with pytest.raises(SampleError, match=f'row {listed[0].row}: '): list(strict)
    else: assert len(list(strict)) == len(first)
    return reader


def write(root, files):
    for name, content in files.items():
        (root/name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


@pytest.mark.parametrize('name', SOURCES)
def test_good_sources_are_read_to_the_end(name, root):
    main, files, options = SOURCES[name]
    write(root, files)
    reader = honest(name, root/main, **{k: root/v for k, v in options.items()})
    bad = name in ('vqav2', 'sbu', 'flickr30k') # one question without annotation, one picture twice
    assert reader.good == len(reader) - bad


@pytest.mark.parametrize('name', SOURCES)
@QUICK
@given(data=st.data())
def test_any_value_at_any_path(name, root, data):
    main, files, options = SOURCES[name]
    files = dict(files)
    for _ in range(data.draw(st.integers(1, 3))):
        file = data.draw(st.sampled_from(sorted(files)))
        at = data.draw(st.sampled_from(list(paths(files[file]))))
        files[file] = changed(files[file], at, data.draw(JUNK | (st.just(...) if at else st.nothing())))
    write(root, files)
    options = {k: root/v for k, v in options.items()}
    try: reader = READERS[name](root/main, **options)
    except MMNeuronError: return # the file as a whole is of no use
    honest(name, root/main, **options)
    for s in reader:
        assert set(s.masks) == {o.concept for o in s.objects}
        for o in s.objects: assert o.mask.shape == load_image(s).size[::-1] and o.mask.dtype == bool and len(o.box) == 4


@pytest.mark.parametrize('name', TEXTS)
@QUICK
@given(data=st.data())
def test_any_bytes_in_text_files(name, root, data):
    main, files = TEXTS[name]
    files = dict(files)
    file = data.draw(st.sampled_from(sorted(files)))
    a, b = sorted(data.draw(st.integers(0, len(files[file]))) for _ in range(2))
    marks = st.sampled_from([b'"', b'\n', b'\r', b'\xff\xfe', b'\xef\xbb\xbf', b'\0', b','])
    junk = data.draw(st.binary(max_size=12) | marks)
    files[file] = files[file][:a] + junk + files[file][b:]
    write(root, files)
    try: READERS[name](root/main)
    except MMNeuronError: return
    honest(name, root/main)


ENCODED = {}
for kind in ('JPEG', 'PNG', 'GIF', 'TIFF', 'WEBP', 'BMP'):
    PHOTO.resize((64, 48)).save(file := io.BytesIO(), kind)
    ENCODED[kind] = file.getvalue()


@settings(QUICK, max_examples=300)
@given(kind=st.sampled_from(sorted(ENCODED)), cut=st.floats(0, 1), where=st.floats(0, .999), junk=st.binary(max_size=6),
       verify=st.sampled_from(['header', 'full', None]), dedup=st.booleans())
def test_any_bytes_in_pictures(kind, cut, where, junk, verify, dedup):
    data = bytearray(ENCODED[kind])
    at = int(where**3*len(data)) # headers most of all
    data[at:at + len(junk)] = junk
    data = bytes(data[:max(1, int(cut*len(data)))]) if cut < .7 else bytes(data)
    rows = [dict(image=image, question='What?') for image in (data, ENCODED['PNG'])]
    reader = from_rows(rows, verify=verify, dedup=dedup)
    samples = list(reader)
    assert len(samples) + len(reader.skipped) == 2 and samples
    for s in samples:
        if verify == 'full' or dedup: assert load_image(s).mode == 'RGB'


def test_a_large_folder_with_every_kind_of_fault(tmp_path):
    rng, faults, rows = np.random.default_rng(0), 0, []
    for n in range(300):
        im = Image.fromarray(rng.integers(0, 255, (12, 16, 3), np.uint8)).resize((64, 48))
        kind = n % 10
        if kind == 1: im = im.resize((1, 1))
        if kind == 2: im = Image.new('1', (20_000, 20))
        im.save(tmp_path/f'{n}.png')
        if kind == 3: (tmp_path/f'{n}.png').write_bytes((tmp_path/f'{n}.png').read_bytes()[:-200])
        if kind == 4: (tmp_path/f'{n}.png').unlink()
        name = '../secret.png' if kind == 5 else f'{n}.png'
        rows.append(dict(image=name, question='' if kind == 6 else 'What?', answer=f'{n}', id=n))
        faults += 1 <= kind <= 6
    rows = [json.dumps(r) for r in rows]
    rows.insert(100, '{"image": "0.p')
    (tmp_path/'t.jsonl').write_text('\n'.join(rows))
    reader = table(tmp_path/'t.jsonl')
    samples = list(reader)
    assert (len(samples), len(reader.skipped), len(reader)) == (300 - faults, faults + 1, 301)
    assert set(reader.reasons().values()) == {30, 1} and len(reader.reasons()) == 7
    for s in samples: assert load_image(s).size == (64, 48)
    assert [s.id for s in reader.shuffle(3)] == [s.id for s in table(tmp_path/'t.jsonl').shuffle(3)]
    assert [s.id for s in reader.shuffle(3).take(5)] == ['239', '38', '238', '179', '147'] # on every machine
    part = [s.id for s in reader.shuffle(3)[:50]]
    assert part == [s.id for s in reader.shuffle(3)][:len(part)]


def test_near_duplicates_among_many_pictures(tmp_path):
    scenes = [s.image for s in make(60, seed=5)]
    for n, im in enumerate(scenes):
        im.save(tmp_path/f'{n:03}.png')
        if n % 3 == 0: im.resize((150, 150)).save(tmp_path/f'{n:03}_again.jpg', quality=70)
    alone = len(list(folder(tmp_path, dedup=True).filter(lambda s: 'again' not in s.id)))
    reader = folder(tmp_path, dedup=True)
    ids = [s.id for s in reader]
    assert alone >= 58 and len(ids) <= alone + 1 # pictures that differ are kept, copies are not
    assert set(reader.reasons()) == {'the image has come before'}
    assert len(ids) + len(reader.skipped) == len(reader) == 80


def test_what_was_read_can_be_recorded(tmp_path):
    from mmneuron_nb.testing.tiny import tiny_llava
    from mmneuron_nb.models.vlm import VLM
    from mmneuron_nb.recording.recorder import record
    PHOTO.save(file := io.BytesIO(), 'PNG')
    (tmp_path/'a.png').write_bytes(file.getvalue())
    ask = dict(image='a.png', question='What is red?', answer='A bus.')
    images = ['a.png', dict(bytes=file.getvalue(), path=None), 'none.png', PHOTO]
    rows = [dict(ask, image=image) for image in images]
    reader = from_rows(rows, images=tmp_path)
    store = record(VLM(*tiny_llava(seed=0, layers=2, neurons=16)), reader, top=2, random=0, progress=False)
    assert store.ids == ['rows-0', 'rows-1', 'rows-3'] and len(reader.skipped) == 1
    tops = store.module('lm')['top_value'].values # the same picture, whichever way it came: the same activations
    assert np.array_equal(tops[..., 0], tops[..., 1])
