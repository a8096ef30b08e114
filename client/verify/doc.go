// Package verify checks callbacks from notifyd, for the merchants that receive them.
//
//	v, err := verify.Standard(os.Getenv("NOTIFY_SECRET"))
//	…
//	http.HandleFunc("POST /notify", func(w http.ResponseWriter, r *http.Request) {
//		callback, err := v.Verify(r)
//		if err != nil {
//			http.Error(w, err.Error(), http.StatusUnauthorized)
//			return
//		}
//		// callback.ID is the same on every attempt: whoever has seen it answers as the first time and does nothing more.
//	})
//
// There is a constructor for each profile, [Custom] for everything else, and [New] for a profile by its name. What is
// checked is always what came: nothing is decoded and written again to compare it. Only what a signature covers gets into a
// [Callback].
//
// [Verifier.Explain] says what is wrong with a request that does not verify, and tries the common mistakes.
package verify
