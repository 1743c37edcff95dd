"""How long a touch of a control takes and what it sends: `python benchmarks/dashboards.py [layers width]`.

The default is LLaVA-1.5-7B, 32 layers of 11,008 neurons. Milliseconds are of Python (process time) and of the clock;
bytes are all messages that the widgets send to the browser. The bar: 150 ms and 200 kB.
"""
import json, sys, time
import ipywidgets as W
from mmneuron_nb.dashboards import HistogramDashboard, LayerDashboard
from mmneuron_nb.views.summaries import Summary, synthetic_table

TOUCHES = {
    HistogramDashboard: [('bins', 50), ('threshold', .5), ('layers', (4, 20)), ('view', 'types'), ('view', 'both'),
                         ('share', True), ('log', True), ('bins', 200), ('theme', 'dark')],
    LayerDashboard: [('n', 5000), ('norm', 'layer'), ('layers', (4, 20)), ('view', 'shares'), ('layers', None),
                     ('ties', 'share'), ('view', 'top'), ('theme', 'dark')]}


class Wire:
    "Counts the bytes that widgets send inside a `with`."

    def __enter__(self):
        self.bytes, self.send, wire = 0, W.Widget._send, self
        def send(widget, msg, buffers=None):
            wire.bytes += len(json.dumps(msg, default=str)) + sum(len(b) for b in buffers or ())
            wire.send(widget, msg, buffers)
        W.Widget._send = send
        return self

    def __exit__(self, *_): W.Widget._send = self.send


def timed(f):
    cpu, wall = time.process_time(), time.perf_counter()
    out = f()
    return out, 1000 * (time.process_time() - cpu), 1000 * (time.perf_counter() - wall)


def main(layers=32, width=11_008):
    table = synthetic_table(layers, width)
    print(f'{len(table):,} neurons')
    s, cpu, wall = timed(lambda: Summary(table))
    print(f'sorting the table once: {cpu:.0f} ms of Python, {wall:.0f} ms of the clock')
    worst = 0., 0
    for kind, touches in TOUCHES.items():
        d, cpu, wall = timed(lambda: kind(s))
        _, ui, _ = timed(lambda: d.ui)
        print(f'\n{kind.__name__}: {cpu:.0f} ms to make, {ui:.0f} ms for its widgets')
        for name, value in touches:
            with Wire() as wire: _, cpu, wall = timed(lambda: setattr(d, name, value))
            worst = max(worst[0], cpu), max(worst[1], wire.bytes)
            took = f'{cpu:6.0f} ms of Python {wall:6.0f} ms of the clock'
            print(f'  {name:10} = {value!s:10} {took} {wire.bytes / 1000:6.0f} kB')
    print(f'\nworst: {worst[0]:.0f} ms of Python, {worst[1] / 1000:.0f} kB')
    if worst[0] > 150 or worst[1] > 200_000: sys.exit('over the bar of 150 ms and 200 kB')


if __name__ == '__main__': main(*map(int, sys.argv[1:]))
