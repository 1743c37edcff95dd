"""How well the shipped model sees.

    python benchmarks/toy_model.py [--scenes 500] [--model data/toy] [--json figures.json]

Held-out scenes (seeds that training never used). Captions: F1 over (object, colour) pairs, and over objects alone.
Questions: exact answers by kind. Two controls tell whether the picture is used: the same questions over another scene's
picture, and the best answer that can be given blind, that is the commonest answer to the very same words. The model is
loaded through transformers alone, as a stranger would.
"""
import argparse, json, os, re, time
from collections import Counter, defaultdict
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmneuron_nb.scenes import world
from mmneuron_nb.scenes.language import PEOPLE, choose, plural, questions
from mmneuron_nb.scenes.plans import Dice, make_plan

SEEDS = dict(caption=7_001, questions=7_002, blind=7_003)
NAMES = {**{c: c for c in world.CONCEPTS}, **{plural(c): c for c in world.CONCEPTS}}
NAMED = '|'.join(sorted(map(re.escape, NAMES), key=len, reverse=True))
COLOUR = '|'.join(world.COLOURS)


def pairs_in(text):
    "Set of (concept, colour) that a caption names."
    things = {(NAMES[name], colour) for colour, name in re.findall(rf'\b({COLOUR}) ({NAMED})\b', text)}
    return things | {(who, colour) for who, colour in re.findall(rf'\b({"|".join(PEOPLE)}) in ({COLOUR})\b', text)}


def f1(said, true):
    "Micro-averaged F1 of two lists of sets."
    hit = sum(len(a & b) for a, b in zip(said, true))
    return 2 * hit / max(1, sum(map(len, said)) + sum(map(len, true)))


def answers(model, processor, images, prompts, size=50, tokens=12):
    "Greedy answers in batches."
    out = []
    for i in range(0, len(images), size):
        text = [f'USER: <image>\n{p} ASSISTANT:' for p in prompts[i:i + size]]
        inputs = processor(images=images[i:i + size], text=text, return_tensors='pt', padding=True)
        with torch.inference_mode(): ids = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        new = ids[:, inputs['input_ids'].shape[1]:]
        out += [t.strip() for t in processor.batch_decode(new, skip_special_tokens=True)]
    return out


def blind(n=6000):
    "The commonest answer to each question, learnt from scenes without looking."
    seen = defaultdict(Counter)
    for i in range(n):
        for kind, pairs in questions(make_plan(SEEDS['blind'], i)).items():
            for draw in range(3):
                q, a = choose(kind, pairs, Dice('blind', i, draw))
                seen[q][a] += 1
    return {q: found.most_common(1)[0][0] for q, found in seen.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--scenes', type=int, default=500, help='scenes for captions and for each kind of question')
    parser.add_argument('--model', default=os.path.relpath(Path(__file__).resolve().parent.parent/'data'/'toy'))
    parser.add_argument('--threads', type=int, default=0)
    parser.add_argument('--json', help='write the figures here')
    args = parser.parse_args()
    if args.threads: torch.set_num_threads(args.threads)
    began = time.time()
    model = AutoModelForImageTextToText.from_pretrained(args.model).eval()
    processor = AutoProcessor.from_pretrained(args.model)
    parameters = sum(p.numel() for p in model.parameters())
    size = sum(p.stat().st_size for p in Path(args.model).iterdir())
    print(f'{args.model}: {parameters:,} parameters, {size:,} bytes; {args.scenes} held-out scenes for each line\n')
    figures = dict(parameters=parameters, bytes=size, scenes=args.scenes)

    some = world.make(args.scenes, seed=SEEDS['caption'], task='caption')
    images, true = [s.image for s in some], [{(o.concept, o.colour) for o in s.objects} for s in some]
    other = images[1:] + images[:1]
    said, control = (answers(model, processor, im, [s.prompt for s in some], tokens=90) for im in (images, other))
    figures['caption'] = dict(
        f1=f1(list(map(pairs_in, said)), true), f1_shuffled=f1(list(map(pairs_in, control)), true),
        f1_objects=f1([{c for c, _ in pairs_in(t)} for t in said], [{c for c, _ in t} for t in true]),
        exact=sum(a == s.answer for a, s in zip(said, some)) / len(some))
    for domain in world.DOMAINS:
        at = [i for i, s in enumerate(some) if s.domain == domain]
        if at: figures['caption'][f'f1_{domain}'] = f1([pairs_in(said[i]) for i in at], [true[i] for i in at])
    c = figures['caption']
    print(f"captions: F1 of (object, colour) {c['f1']:.3f}, with another picture {c['f1_shuffled']:.3f}; "
          f"objects alone {c['f1_objects']:.3f}; whole caption exact {c['exact']:.3f}")
    by_domain = ', '.join(f"{d} {c[f'f1_{d}']:.3f}" for d in world.DOMAINS if f'f1_{d}' in c)
    print(f'          by domain {by_domain}\n')

    guess = blind()
    print(f'{"kind":9} {"accuracy":>9} {"shuffled":>9} {"blind":>7} {"majority":>9}   commonest mistake')
    for kind in world.KINDS:
        some = world.make(args.scenes, seed=SEEDS['questions'], task=kind)
        images, prompts = [s.image for s in some], [s.prompt for s in some]
        said = answers(model, processor, images, prompts, tokens=16)
        control = answers(model, processor, images[1:] + images[:1], prompts, tokens=16)
        right = [a == s.answer for a, s in zip(said, some)]
        mistakes = Counter(f'{s.prompt} {s.answer}, not {a}' for a, s, ok in zip(said, some, right) if not ok)
        wrong = mistakes.most_common(1)[0][0] if mistakes else ''
        commonest = Counter(s.answer for s in some).most_common(1)[0][1]
        line = dict(accuracy=sum(right) / len(some),
                    shuffled=sum(a == s.answer for a, s in zip(control, some)) / len(some),
                    blind=sum(guess.get(s.prompt) == s.answer for s in some) / len(some),
                    majority=commonest / len(some))
        figures[kind] = line
        shares = f'{line["accuracy"]:9.3f} {line["shuffled"]:9.3f} {line["blind"]:7.3f} {line["majority"]:9.3f}'
        print(f'{kind:9} {shares}   {wrong}', flush=True)
    figures['seconds'] = time.time() - began
    print(f'\n{figures["seconds"]:.0f} s')
    if args.json: Path(args.json).write_text(json.dumps(figures, indent=1) + '\n')


if __name__ == '__main__': main()
