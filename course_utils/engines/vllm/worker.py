"""vLLM on a GPU."""

from protocol import serve
from vllm_session import VllmSession

if __name__ == "__main__":
    serve(VllmSession)
