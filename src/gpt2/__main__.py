from gpt2.cli import main

main()
