import numpy as np

from jaxinterp.gated.report import UNITS, open_gates


def test_all_open_gates_are_counted_though_some_are_drawn():
    gates = [np.random.default_rng(0).random((3, size)) > 0.5 for size in (2 * UNITS, 7)]
    gates[1][2] = False
    values = open_gates(gates, 16, fully=True).values
    assert values["counts"].tolist() == [[int(gate[i].sum()) for gate in gates] for i in range(3)]
    assert values["counts"][2, 1] == 0
    assert values["units"] == [2 * UNITS, 7]
    assert values["sizes"] == [UNITS, 7]
    assert values["open"].shape == (3, UNITS + 7)
