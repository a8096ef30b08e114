// Package sign makes and checks the signatures that contracts ask for: the pattern of what is signed, the algorithms, the
// text that a signature becomes, the encryption of parts of a request, and the pool in which costly signatures wait.
//
// The steps of one signature:
//
//	message, err := pattern.Append(nil, value)          // what is signed
//	raw, err := pool.Sign(ctx, merchant, signer, message) // or signer.Sign(message)
//	text := encoding.Encode(raw)                        // what is placed
//
// Keys and secrets never print: whatever formats, logs or marshals one gets a mask or a description. A message may have the
// secret in it, by its pattern's {secret}: to show one to a person, fill the pattern again with a mask there.
package sign
