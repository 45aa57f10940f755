"""Work for other processes in tests; imports nothing heavy."""

import os
import time


def square_or_die(offset: int, number: int) -> int:
    if number == 3:
        os._exit(7)
    time.sleep(0.02 * (number % 2))
    return offset + number**2
