"""`python -m jobs_async` is `jobs-async`."""

from jobs_async.cli.main import main

if __name__ == "__main__":
    main()
