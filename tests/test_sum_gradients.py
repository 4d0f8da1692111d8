from rvi_fast import testing


class TestSumGradients(testing.SumGradientsContract):
    """The definition."""
