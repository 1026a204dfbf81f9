"""Start a process that sleeps, print its number, and sleep as well."""

import subprocess
import sys
import time

SLEEP = [sys.executable, "-c", "import time; time.sleep(300)"]

print(subprocess.Popen(SLEEP).pid, flush=True)
time.sleep(300)
