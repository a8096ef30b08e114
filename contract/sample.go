package contract

import (
	"encoding/json"
	"time"

	"notifyd/notification"
)

// Sample is a payload that a profile can carry, for test calls.
func Sample(profile string, n *notification.Notification) []byte {
	var sample any = struct {
		Type    string `json:"type"`
		OrderID string `json:"order_id"`
		Status  string `json:"status"`
		Amount  string `json:"amount"`
		At      string `json:"at"`
		Test    bool   `json:"test"`
	}{n.EventType, n.OrderID, n.OrderStatus, "0.01", n.AcceptedAt.UTC().Format(time.RFC3339), true}
	if profile == Adyen {
		type amount struct {
			Currency string `json:"currency"`
			Value    int    `json:"value"`
		}
		type item struct {
			EventCode           string `json:"eventCode"`
			Success             string `json:"success"`
			PSPReference        string `json:"pspReference"`
			MerchantReference   string `json:"merchantReference"`
			MerchantAccountCode string `json:"merchantAccountCode"`
			Amount              amount `json:"amount"`
			EventDate           string `json:"eventDate"`
		}
		type wrapped struct {
			Item item `json:"NotificationRequestItem"`
		}
		sample = struct {
			Live  string    `json:"live"`
			Items []wrapped `json:"notificationItems"`
		}{"false", []wrapped{{item{"REPORT_AVAILABLE", "true", n.ID.String(), n.OrderID, n.MerchantID, amount{"EUR", 1}, n.AcceptedAt.UTC().Format(time.RFC3339)}}}}
	}
	text, _ := json.Marshal(sample) // nothing in it can fail
	return text
}
