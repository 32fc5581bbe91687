"""What a newcomer reads when a vector fails: the difference, in the helpers too."""

import pytest

pytest.register_assert_rewrite("tests.conformance.providers.exchanges")
