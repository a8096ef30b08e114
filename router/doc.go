// Package router decides which way a notification goes: its lane, what shares its queue and breaker, the way out, the
// schedule and what durable means. It is pure: the time is an argument, and the same question has the same answer.
//
// The first rule that matches decides, in this order: the configured ones, RuleRequested, RuleSyncScenes, RuleAsync.
// What the deciding rule leaves open is the merchant's to say, and after it the built-in default's.
package router
