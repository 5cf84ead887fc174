"""The unweighted golden values of the design (Arb at 300 bits), out of /v1/truth to the last digit printed."""

from decimal import ROUND_HALF_EVEN, Context, Decimal

import pytest

ZEROS = [0.0] * 31_999
GOLDEN = {
    "logsumexp near 0": ("logsumexp", [0, -40], None, ["4.2483542552915889863e-18"]),
    "1 - p_0, negated": ("cross_entropy_grad", [0, -40], 0, ["-4.2483542552915889773e-18"]),
    "logsumexp far from 0": ("logsumexp", [1000, 999], None, ["1000.3132616875182228"]),
    "log_softmax of a sure class": ("log_softmax", [0, -104], None, ["-6.8135568215452985e-46", "-104"]),
    "log_softmax far from 0": ("log_softmax", [-1e7, -1e7, -9999999], None, ["-1.551444714", "-1.551444714", "-.5514447139"]),
    "p of equal logits": ("softmax", [0.0] * 4096, None, ["0.000244140625"] * 4096),
    "logsumexp of equal logits": ("logsumexp", [0.0] * 4096, None, ["8.3177661667193437"]),
    "p at half an ulp": ("softmax", [0, 37.42994775023705], None, ["5.5511151231257757870e-17"]),
    "p_t at +15": ("softmax", [15, *ZEROS], None, [".990306318906"]),
    "its gradient": ("cross_entropy_grad", [15, *ZEROS], 0, ["-.00969368109375"]),
    "p_t at +17": ("softmax", [17, *ZEROS], None, [".998677013940"]),
    "that one's gradient": ("cross_entropy_grad", [17, *ZEROS], 0, ["-.00132298605984"]),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_a_golden_value(service, name):
    op, logits, targets, printed = GOLDEN[name]
    answer = service.post("/v1/truth", json={"op": op, "logits": logits, "targets": targets, "format": "float64", "digits": 30})
    assert answer.status_code == 200, answer.text
    found = answer.json()["decimal"]
    for text, wanted in zip([found] if isinstance(found, str) else found, map(Decimal, printed), strict=False):
        digits = Context(prec=len(wanted.as_tuple().digits), rounding=ROUND_HALF_EVEN)
        assert digits.create_decimal(text) == wanted
