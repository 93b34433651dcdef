"""python -m aqnet.data.inspect"""

from aqnet.data.inspect.run import main
from aqnet.errors import run

if __name__ == "__main__":
    run(main)
