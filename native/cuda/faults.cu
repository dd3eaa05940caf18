#include "cuda/faults.h"

namespace llm::cuda {

const char* fault_text(int op, Fault f) {
  switch (f) {
    case Fault::token_id:
      if (op == op_embedding || op == op_embedding_bwd) return "token id outside the embedding table";
      return op == op_token_logprobs ? "token id outside the vocabulary" : "label outside the vocabulary";
    case Fault::row_index: return "row index outside the tensor";
    case Fault::slot: return "slot outside the cache";
    case Fault::kv_length: return "kv length beyond the block table";
    case Fault::block_entry: return "block table entry outside the cache";
    case Fault::history_length: return "history length outside the history";
    case Fault::history_token: return "history token outside the vocabulary";
    case Fault::boundaries: return "sequence boundaries must rise and stay within the tokens";
    case Fault::position: return "position outside the cos/sin table";
    case Fault::logit: return "a logit is NaN or +Infinity";
    case Fault::no_logit: return "no token has a finite logit";
    default: return "bad data";
  }
}

}  // namespace llm::cuda
